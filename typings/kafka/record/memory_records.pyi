from kafka.record.default_records import DefaultRecordBatch as _Batch

DefaultRecordBatch: type[_Batch]

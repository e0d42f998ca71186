from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypedDict

from kafka import TopicPartition

class ConfigResource:
    def __init__(
        self, resource_type: str, name: str, configs: Sequence[str] | Mapping[str, str] | None = None
    ) -> None: ...

class NewTopic:
    def __init__(
        self, name: str, num_partitions: int, replication_factor: int, topic_configs: Mapping[str, str] | None = None
    ) -> None: ...

class NewPartitions:
    def __init__(self, total_count: int) -> None: ...

class OffsetSpec:
    EARLIEST: int
    LATEST: int
    MAX_TIMESTAMP: int

class ResourceType(IntEnum):
    ANY = 1
    TOPIC = 2
    GROUP = 3

class ACLResourcePatternType(IntEnum):
    ANY = 1
    LITERAL = 3
    PREFIXED = 4

class ACLOperation(IntEnum):
    ANY = 1

class ACLPermissionType(IntEnum):
    ANY = 1
    ALLOW = 3

class ResourcePatternFilter:
    def __init__(
        self, resource_type: ResourceType, resource_name: str | None, pattern_type: ACLResourcePatternType
    ) -> None: ...

class ResourcePattern(ResourcePatternFilter): ...

class ACLFilter:
    principal: str | None
    host: str | None
    operation: ACLOperation
    permission_type: ACLPermissionType
    resource_pattern: ResourcePatternFilter
    def __init__(
        self,
        principal: str | None,
        host: str | None,
        operation: ACLOperation,
        permission_type: ACLPermissionType,
        resource_pattern: ResourcePatternFilter,
    ) -> None: ...

class ACL(ACLFilter): ...

class Created(TypedDict):
    succeeded: list[ACL]
    failed: list[type[Exception]]

class ScramMechanism(IntEnum):
    SCRAM_SHA_256 = 1
    SCRAM_SHA_512 = 2

class UserScramCredentialUpsertion:
    def __init__(self, user: str, mechanism: ScramMechanism, password: str) -> None: ...

class KafkaAdminClient:
    def __init__(self, **configs: object) -> None: ...
    def describe_topics(self, topics: Sequence[str] | None = None) -> Sequence[Mapping[str, Any]]: ...
    def describe_configs(
        self, config_resources: Sequence[ConfigResource], *, config_filter: str = "modified"
    ) -> Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]: ...
    def alter_configs(self, config_resources: Sequence[ConfigResource]) -> Mapping[str, Mapping[str, str]]: ...
    def create_topics(self, new_topics: Sequence[NewTopic], wait_for_metadata: bool = False) -> object: ...
    def create_partitions(self, topic_partitions: Mapping[str, NewPartitions]) -> object: ...
    def delete_topics(self, topics: Sequence[str]) -> object: ...
    def list_group_offsets(self, group_specs: str) -> Mapping[str, Mapping[Any, Any]]: ...
    def describe_cluster(self) -> Mapping[str, Any]: ...
    def get_broker_version_data(self, broker_id: int) -> Any: ...
    def describe_groups(self, group_ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]: ...
    def list_partition_offsets(self, topic_partition_specs: Mapping[TopicPartition, int]) -> Mapping[Any, Any]: ...
    def create_acls(self, acls: Sequence[ACL]) -> Created: ...
    def delete_acls(self, acl_filters: Sequence[ACLFilter]) -> object: ...
    def describe_acls(self, acl_filter: ACLFilter) -> tuple[list[ACL], object]: ...
    def alter_user_scram_credentials(self, alterations: Sequence[UserScramCredentialUpsertion]) -> object: ...
    def close(self) -> None: ...

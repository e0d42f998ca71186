"""Every part of the examination, in the order in which it is told. `cli_doctor` hands them to `examination`."""

from __future__ import annotations

from metier.doctor import engine, files, grant_key, kafka, models, places, postgres, redis, settings, telemetry

PARTS = (
    settings.PART,
    files.PART,
    kafka.PART,
    postgres.PART,
    redis.PART,
    grant_key.PART,
    engine.PART,
    models.PART,
    places.PART,
    telemetry.PART,
)

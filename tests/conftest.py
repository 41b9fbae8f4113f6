"""What holds for all tests: hypothesis does not judge how fast a shared machine draws its examples."""

from hypothesis import HealthCheck, settings

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

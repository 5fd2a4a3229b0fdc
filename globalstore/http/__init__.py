"""Health, readiness and metrics over HTTP."""

from globalstore.http.app import HttpApp
from globalstore.http.health import Conditions, HealthState
from globalstore.http.serving import serve_http

__all__ = ["Conditions", "HealthState", "HttpApp", "serve_http"]

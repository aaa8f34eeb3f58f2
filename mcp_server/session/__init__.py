"""What outlives a call: loaded models, queues of the devices, runs, and files of results.

This package imports nothing that needs torch. `lazy_discovery` imports what measures, on the first
call that uses it.
"""

from mcp_server.session.allowed_paths import AllowedPaths
from mcp_server.session.devices import DeviceJob
from mcp_server.session.session import Session
from mcp_server.session.settings import ServerSettings

__all__ = ["AllowedPaths", "DeviceJob", "ServerSettings", "Session"]

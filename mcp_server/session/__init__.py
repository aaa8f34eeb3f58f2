"""What outlives a call: loaded models, the devices' queues, runs in the background, results to be fetched.

Imports nothing that needs torch; `science` brings that in on the first call that measures.
"""

from mcp_server.session.allowed_paths import AllowedPaths
from mcp_server.session.devices import DeviceJob, DeviceQueues
from mcp_server.session.session import Session
from mcp_server.session.settings import ServerSettings

__all__ = ["AllowedPaths", "DeviceJob", "DeviceQueues", "ServerSettings", "Session"]

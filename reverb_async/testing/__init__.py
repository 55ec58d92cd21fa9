"""Help for tests of programs that use this package, and of other ways to a server."""

from reverb_async.testing.conformance import ConformanceSuite
from reverb_async.testing.loops import settle, until

__all__ = ["ConformanceSuite", "settle", "until"]

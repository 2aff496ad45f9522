"""Programs of other processes that use a store, by its address; see `Child` in conftest."""

PUBLISH = """
import sys
from pipelines.store.keys import Ref
from pipelines.store.open import open_store
store = open_store(sys.argv[1])
with store.publish(Ref("data", sys.argv[2]), {}) as directory:
    (directory / "a.txt").write_text(sys.argv[3])
    print("writing")
    input()
print("done")
"""

WANT = """
import sys
from pipelines.store.keys import Ref
from pipelines.store.open import open_store
store = open_store(sys.argv[1])
print("ready")
input()
with store.lease(Ref("data", "shared"), lambda: store.find(Ref("data", "shared")) is not None):
    if store.find(Ref("data", "shared")) is None:
        store.log("execute", Ref("data", "shared"))
        with store.publish(Ref("data", "shared"), {}) as directory:
            (directory / "a.txt").write_text("content")
print("ok" if store.open(Ref("data", "shared")) else "missing")
"""

LEASE = """
import sys
from pipelines.store.keys import Ref
from pipelines.store.open import open_store
def waiting():
    if not told:
        told.append(print("waiting"))
told = []
with open_store(sys.argv[1]).lease(Ref("data", "shared"), waiting) as held:
    print("held", held)
    input()
print("over")
"""

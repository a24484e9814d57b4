#!/bin/sh
# Makes one OCI layout of several, with an index over their images: what a registry shows as one image for each architecture.
#
#   deploy/index.sh NAME LAYOUT… INTO
#
# Python's own modules are enough, and nothing of it depends on the time.
set -eu
exec python3 - "$@" <<'E2'
import hashlib, json, os, shutil, sys

name, *layouts, into = sys.argv[1:]
blobs = os.path.join(into, "blobs", "sha256")
os.makedirs(blobs)


def blob(layout, digest):
    return os.path.join(layout, "blobs", *digest.split(":"))


manifests = []
for layout in layouts:
    with open(os.path.join(layout, "index.json")) as file:
        (image,) = json.load(file)["manifests"]
    with open(blob(layout, image["digest"])) as file:
        manifest = json.load(file)
    with open(blob(layout, manifest["config"]["digest"])) as file:
        config = json.load(file)
    manifests.append(
        {
            "mediaType": image["mediaType"],
            "digest": image["digest"],
            "size": image["size"],
            "platform": {"architecture": config["architecture"], "os": config["os"]},
        }
    )
    shutil.copytree(os.path.join(layout, "blobs", "sha256"), blobs, dirs_exist_ok=True)

OCI = "application/vnd.oci.image.index.v1+json"


def written(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


index = written({"schemaVersion": 2, "mediaType": OCI, "manifests": manifests})
digest = hashlib.sha256(index).hexdigest()
with open(os.path.join(blobs, digest), "wb") as file:
    file.write(index)
top = {
    "mediaType": OCI,
    "digest": "sha256:" + digest,
    "size": len(index),
    "annotations": {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name},
}
with open(os.path.join(into, "index.json"), "wb") as file:
    file.write(written({"schemaVersion": 2, "mediaType": OCI, "manifests": [top]}))
with open(os.path.join(into, "oci-layout"), "w") as file:
    file.write('{"imageLayoutVersion":"1.0.0"}')
print(name, "sha256:" + digest)
E2

"""PETSeg from other software over HTTP. Beside it runs, with a token of your own in the file, the service.

petseg-run inbox -o results --watch --http-port 8080 --http-token-file token.txt
"""

import json
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

service, token_file, scan = sys.argv[1:]  # such as http://127.0.0.1:8080 token.txt scan.nii.gz
headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"}


def ask(path: str, body: bytes | None = None) -> bytes:
    """What the service answers; an error has its reason in the body of the answer."""
    try:
        with urlopen(Request(service + path, body, headers)) as answer:
            return answer.read()
    except HTTPError as error:
        sys.exit(f"The service answered {error.code}: {error.read().decode(errors='replace')}")


formats = ("nii", "nii.gz", "mha", "nrrd", "dicom.zip")  # the last is an archive of one DICOM study
suffix = next((one for one in formats if scan.endswith(f".{one}")), "")
state = json.loads(ask(f"/scans?format={suffix}", Path(scan).read_bytes()))
while state["state"] == "waiting":
    time.sleep(1)
    state = json.loads(ask(f"/scans/{state['id']}"))
if state["state"] == "failed":
    sys.exit(state["error"])
Path("result.zip").write_bytes(ask(f"/scans/{state['id']}/result"))
print(f"{state['statistics']['lesion_count']} lesions; result.zip holds {', '.join(state['outputs'])}")

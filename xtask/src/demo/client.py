"""One request with a real client: prints the body and, in the last line, the status."""

import sys
import urllib.error
import urllib.request

library, method, url = sys.argv[1:]
if library == "requests":
    import requests

    answer = requests.request(method, url, timeout=60)
    body, status = answer.text, answer.status_code
else:
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60)
    except urllib.error.HTTPError as refusal:
        answer = refusal
    body, status = answer.read().decode(), answer.status
print(body)
print(status)

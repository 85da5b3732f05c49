"""What schemathesis cannot know: who asks, which registrations and messages there are, what a frame is.

Every second call of an operation names what is really there; the others are as they were made. What was answered is
noted, an operation and a status a line.
"""

import collections
import json
import os

import schemathesis

schemathesis.serializer.alias("application/vnd.carillon.frames", "application/octet-stream")

# Credentials, ids and bodies: see tests/schemathesis.rs.
KNOWN = json.loads(os.environ["CARILLON_KNOWN"])
SEEN = open(os.environ["CARILLON_SEEN"], "a", buffering=1)

calls = collections.Counter()


def name(case):
    return f"{case.method.lower()} {case.path}"


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = name(case)
    calls[operation] += 1
    case.headers["Authorization"] = KNOWN["bearer"]
    if calls[operation] % 2:
        name_what_is_there(case)
    # What is ended is another one each time: schemathesis names registrations that it found in answers.
    if operation == "delete /v1/apps/{app}/registrations/{regid}" and KNOWN["spare"]:
        case.path_parameters["regid"] = KNOWN["spare"].pop()


def name_what_is_there(case):
    for parameters in (case.path_parameters, case.query):
        for parameter, value in KNOWN["there"].items():
            if parameters and parameter in parameters:
                parameters[parameter] = value
    if case.path == "/v1/frames":
        case.headers["Authorization"] = KNOWN["basic"]
        case.body = bytes.fromhex(KNOWN["frames"])
    body = case.body
    if not isinstance(body, dict):
        return
    if "app_key" in body:
        body["app_id"], body["app_key"] = KNOWN["there"]["app"], KNOWN["app_key"]
    for holder in (body, body.get("target")):
        if isinstance(holder, dict) and isinstance(holder.get("regids"), list) and holder["regids"]:
            holder["regids"][0] = KNOWN["there"]["regid"]


@schemathesis.hook
def after_call(context, case, response):
    SEEN.write(f"{response.status_code} {name(case)}\n")

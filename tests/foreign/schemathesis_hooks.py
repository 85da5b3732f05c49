"""Bodies of frames are bytes: what schemathesis cannot know of a type of ours."""

import schemathesis

schemathesis.serializer.alias("application/vnd.carillon.frames", "application/octet-stream")

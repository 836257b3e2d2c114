"""The serving process: one core behind three doors (Open Inference Protocol v2 over HTTP and gRPC, shared memory).

========================  ============================================================================
file                      what it does
========================  ============================================================================
call.py                   a request and an answer, free of any protocol
core.py                   what every door does: check, infer, remember for labels, count
recent.py                 answered requests that a label can still join
labels.py                 joins ground truth to requests, keeps samples, reports the confusion
oip_json.py               Open Inference Protocol in JSON with the binary tensor extension (pure)
oip_messages.py           Open Inference Protocol in protobuf (pure)
http_infer.py             inference over HTTP, past the framework; errors in terms of HTTP
http_body.py              bodies: bounded, unpacked
http_app.py               all routes (starlette)
http_protocol.py          a connection, and the bounds on what it may make the door wait for (uvicorn)
listening.py              where the doors of the network listen
http_door.py              the HTTP server on its thread
grpc_methods.py           the methods of the gRPC service, from bytes to bytes
grpc_door.py              which gRPC door there is
http2_door.py             the gRPC server: one thread around nghttp2
http2.py                  one of its connections (``_http2.c``), timeouts, compression
grpcio_door.py            the gRPC server where nghttp2 was missing at installation
shared_memory_layout.py   messages and headers of the shared-memory door (pure)
slots.py                  a request's way through shared memory, compiled (``_slots.c``) or in Python
shared_memory_region.py   the memory of one client, from both sides
shared_memory_door.py     the door: who may come in, whose turn it is
admin.py                  what control asks over a unix socket: activate a slot, status
metrics.py                which metrics there are
exposition.py             their text: Prometheus and OpenMetrics with exemplars (pure)
process.py                puts the parts together, runs and stops them
========================  ============================================================================
"""

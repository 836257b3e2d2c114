"""The serving process: one core behind two doors (Open Inference Protocol v2 over HTTP and gRPC).

====================  ================================================================================
file                  what it does
====================  ================================================================================
call.py               a request and an answer, free of any protocol
core.py               what both doors do: check, infer, remember for labels, count
recent.py             answered requests that a label can still join
labels.py             joins ground truth to requests, keeps samples, reports the confusion
oip_json.py           Open Inference Protocol in JSON with the binary tensor extension (pure)
oip_messages.py       Open Inference Protocol in protobuf (pure)
http_door.py          starlette and uvicorn
grpc_door.py          grpcio
admin.py              ServingAdmin on a unix socket: activate a slot, status
metrics.py            Prometheus
process.py            puts the parts together, runs and stops them
====================  ================================================================================
"""

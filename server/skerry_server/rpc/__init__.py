"""The gRPC API: the services of ``fleet_api.proto`` over the same reads and domain services as REST."""

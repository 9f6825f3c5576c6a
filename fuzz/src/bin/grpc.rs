//! Messages of gRPC.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(grpc);

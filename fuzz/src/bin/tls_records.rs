//! Records after the handshake.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(tls_records);

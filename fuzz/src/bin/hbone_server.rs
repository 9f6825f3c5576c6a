//! The server of tunnels, from HTTP/2 on.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(hbone_server);

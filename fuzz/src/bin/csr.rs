//! Certificate signing requests.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(csr);

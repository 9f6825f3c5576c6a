//! Manifests, policies among them.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(manifests);

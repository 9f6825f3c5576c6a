//! Names in the cgroup tree.
#![cfg_attr(fuzzing, no_main)]

mesh_fuzz::target!(cgroups);

//! Debian kernels under QEMU.

// NCCL for Python, by ctypes; errors as in collective/c_interface.h.
#pragma once

#include "collective/c_interface.h"

extern "C" {

/// Writes the version (23007 for 2.30.7) and the path of the NCCL that is loaded, or that can be: of library_count
/// paths the first. Code::not_implemented stands for: there is no NCCL.
BNPASS_EXPORT int bnpass_nccl_version(size_t library_count, const char* const* libraries, int* version, char* path,
                                      size_t path_bytes);

/// Has NCCL make an id, as a first replica does; needs no GPU.
BNPASS_EXPORT int bnpass_nccl_check(size_t library_count, const char* const* libraries);

/// Writes groups of the same names and replicas as `host`, whose messages on the GPU travel by NCCL.
BNPASS_EXPORT int bnpass_groups_nccl(const bnpass_groups* host, size_t library_count, const char* const* libraries,
                                     bnpass_groups** groups);
}

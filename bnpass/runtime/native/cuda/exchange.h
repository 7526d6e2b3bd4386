// Messages in device memory over a group: as they are where the group moves them on the device (NCCL), and by way of
// the host elsewhere.
#pragma once

#include <string>

#include "cuda/workspace.h"
#include "ort/node.h"

namespace bnpass::cuda {

/// Whether messages of the group go by way of the host, and need staging memory.
bool goes_by_host(const ort::Membership& membership);

/// Sums a message of doubles over the group, in place, in the order of the lease's stream. Throws Error if the group
/// does not come to a sum, and if it would have to pass through the host while a CUDA graph is captured.
void exchange(const ort::Membership& membership, const Workspace::Lease& lease, double* message, size_t length);

/// The AllReduce operator on device memory; wire: length words of 8 bytes. X may be Y.
void all_reduce(const ort::Membership& membership, const Workspace::Lease& lease, Element element,
                const std::string& reduction, const void* X, void* Y, void* wire, size_t length);

}  // namespace bnpass::cuda

// A group whose messages NCCL moves between GPUs. Headers are agreed on through a host group of the same replicas, as
// in every group; the payload stays in device memory and in the order of the stream.
//
// NCCL itself has no deadline. A watchdog follows each message by an event: if it is not done in time, or NCCL reports
// an error, the communicator is aborted and the group is failed for good. The host has gone on by then, so the message
// is filled with NaN behind the aborted kernel: what is computed from it is never a plausible number, and the next
// collective raises the error. Messages in a CUDA graph are agreed on once, when it is captured; the watchdog does not
// see their replays.
#pragma once

#include <memory>

#include "collective/device_group.h"
#include "collective/host_group.h"
#include "cuda/nccl_library.h"

namespace bnpass::cuda {

/// Returns the groups of a replica with NCCL below them; the communicator of a group is made at its first message, for
/// the device that is current then. Throws Error if a group of the host cannot agree on headers.
std::shared_ptr<collective::Groups> nccl_groups(std::shared_ptr<collective::Groups> host, const NcclLibrary& library);

}  // namespace bnpass::cuda

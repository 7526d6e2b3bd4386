// Waiting for MPI with an end.
#pragma once

#include "collective/host_group.h"
#include "collective/mpi_library.h"

namespace bnpass::collective {

/// Asks MPI for a request until it is done, or it is `end`: first without a pause, then giving the core away, then in
/// longer and longer naps. Returns whether it is done; throws Error if MPI fails.
bool wait_until(MpiLibrary& mpi, MpiHandle& request, Clock::time_point end);

}  // namespace bnpass::collective

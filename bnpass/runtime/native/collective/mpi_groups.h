// Replicas that are processes of MPI.
//
// A call is one MPI_Iallreduce of its header and one of its payload, each asked for with MPI_Test until the deadline.
// What MPI may still write to after a deadline is memory of the group that is then never freed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collective/host_group.h"
#include "collective/named_groups.h"

namespace bnpass::collective {

struct MpiOptions {
  /// Paths or names of libraries, in order of preference. An MPI that already runs in the process goes before them.
  std::vector<std::string> libraries;
  /// Native handle of the communicator to be the world; MPI_COMM_WORLD if there is none.
  std::optional<uint64_t> communicator;
  Deadline deadline{60};
};

/// Returns the groups of this process: "world" and the sub-groups. All processes of the communicator must call it.
/// Throws Error: Code::not_implemented if there is no MPI; else if MPI cannot be used, if a sub-group cannot be, or if
/// the processes do not agree about the sub-groups.
std::shared_ptr<Groups> mpi_groups(const MpiOptions& options, const std::vector<SubGroup>& sub_groups);

/// Returns "MPICH family, /path/libmpi.so.12, thread level 3", or "" if MPI is not in use.
std::string mpi_description();

/// Ends the job if this process cannot leave MPI in order (broken, or a collective never ended), else finalises MPI if
/// it was initialised here.
void mpi_end(bool broken);

void mpi_abort(int code);

}  // namespace bnpass::collective

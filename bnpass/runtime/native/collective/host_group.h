// A group whose messages lie in host memory: what local, threads and mpi give, and what a group for device memory is
// built upon.
#pragma once

#include <chrono>
#include <string>

#include "collective/group.h"

namespace bnpass::collective {

using Clock = std::chrono::steady_clock;

/// How long a replica waits for the others in one collective.
using Deadline = std::chrono::duration<double>;

class HostGroup : public Group {
 public:
  /// Agrees on the header of a call with all replicas and moves no payload. Throws Error as all_reduce does.
  virtual void agree(const Call& call) = 0;

  /// Lets the group be failed from now on, here alone: what a transport of its own (NCCL) found out.
  virtual void break_off(const std::string& sentence) = 0;

  virtual Deadline deadline() const = 0;
};

}  // namespace bnpass::collective

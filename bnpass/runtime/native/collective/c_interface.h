// What Python calls by ctypes. Functions return 0, or a Code of core/error.h, and then bnpass_last_error() says why, on
// the thread that called. No exception leaves them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/error.h"

#define BNPASS_EXPORT __attribute__((visibility("default")))

namespace bnpass::collective {

/// Keeps a sentence for bnpass_last_error() on this thread; returns the code.
int remember_error(Code code, const char* sentence) noexcept;

/// Calls body(); returns 0, or the code of what it threw.
template <class F>
int guarded(const F& body) noexcept {
  try {
    body();
    return 0;
  } catch (const Error& error) {
    return remember_error(error.code(), error.what());
  } catch (const std::exception& error) {
    return remember_error(Code::fail, error.what());
  } catch (...) {
    return remember_error(Code::fail, "an unknown error");
  }
}

}  // namespace bnpass::collective

extern "C" {

/// The groups of one replica.
struct bnpass_groups;

/// Named parts of the world: names[i] has member_counts[i] members, which follow one another in members.
struct bnpass_sub_groups {
  size_t count;
  const char* const* names;
  const size_t* member_counts;
  const int* members;
};

/// Returns the sentence of the last error on this thread; valid until the next call on it.
BNPASS_EXPORT const char* bnpass_last_error();

/// Writes the groups of a replica that is alone.
BNPASS_EXPORT int bnpass_groups_local(bnpass_groups** groups);

/// Writes the groups of `size` replicas that are threads of this process, in rank order. deadline: seconds.
BNPASS_EXPORT int bnpass_groups_threads(int size, double deadline, const bnpass_sub_groups* sub_groups,
                                        bnpass_groups** groups);

/// Writes the groups of this process among the processes of MPI; all of them must call it. Loads MPI if the process has
/// none: of library_count paths or names the first that can be loaded. communicator: null, or a native handle of a
/// communicator that takes the place of MPI_COMM_WORLD. Code::not_implemented stands for: there is no MPI.
BNPASS_EXPORT int bnpass_groups_mpi(size_t library_count, const char* const* libraries, const uint64_t* communicator,
                                    double deadline, const bnpass_sub_groups* sub_groups, bnpass_groups** groups);

/// Lets go of groups; operators that were made with them keep theirs.
BNPASS_EXPORT void bnpass_groups_free(bnpass_groups* groups);

/// Sets the groups for operators that are registered on this thread; null: a replica that is alone.
BNPASS_EXPORT int bnpass_use_groups(const bnpass_groups* groups);

BNPASS_EXPORT int bnpass_group_rank(const bnpass_groups* groups, const char* name, int* rank);
BNPASS_EXPORT int bnpass_group_size(const bnpass_groups* groups, const char* name, int* size);

/// The AllReduce operator on host memory. element: number of an ONNX type; reduction: "sum", "mean", "max", "min".
BNPASS_EXPORT int bnpass_all_reduce(const bnpass_groups* groups, const char* name, int64_t collective_id,
                                    const char* node, int element, const char* reduction, const void* X, void* Y,
                                    size_t length);

/// Tells all replicas that this one cannot take part; never returns 0.
BNPASS_EXPORT int bnpass_group_fail(const bnpass_groups* groups, const char* name, int64_t collective_id,
                                    const char* node, const char* failure);

/// Returns what MPI this process uses, "MPICH family, /path/libmpi.so.12, thread level 3"; "" if it uses none.
BNPASS_EXPORT const char* bnpass_mpi_description();

/// Ends the use of MPI at the end of the process: ends the whole job if it cannot end well (a replica is broken or
/// still waits for others); else finalises MPI if it was initialised here. broken: the process ends by an error.
BNPASS_EXPORT void bnpass_mpi_end(int broken);

/// Ends all processes of MPI at once.
BNPASS_EXPORT void bnpass_mpi_abort(int code);
}

// The MPI library that the process has or can get, called without any header of it: three families of MPI differ in
// their constants alone, and a handle of each fits in one word.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace bnpass::collective {

/// A handle of MPI: a pointer, or in the MPICH family an int, in the low half of the word.
using MpiHandle = uintptr_t;

/// Constants of one family.
struct MpiConstants {
  const char* family;
  MpiHandle comm_world, float32, float64, int64, sum, max, min, errors_return;
  void* in_place;
  void* status_ignore;
  int serialized, multiple;  ///< Thread levels.
  bool int_handles;
};

struct MpiFunctions {
  int (*Initialized)(int*);
  int (*Finalized)(int*);
  int (*Init_thread)(int*, char***, int, int*);
  int (*Query_thread)(int*);
  int (*Is_thread_main)(int*);
  int (*Finalize)();
  int (*Abort)(MpiHandle, int);
  int (*Error_string)(int, char*, int*);
  int (*Comm_rank)(MpiHandle, int*);
  int (*Comm_size)(MpiHandle, int*);
  int (*Comm_dup)(MpiHandle, MpiHandle*);
  int (*Comm_split)(MpiHandle, int, int, MpiHandle*);
  int (*Comm_free)(MpiHandle*);
  int (*Comm_set_errhandler)(MpiHandle, MpiHandle);
  int (*Ibarrier)(MpiHandle, MpiHandle*);
  int (*Iallreduce)(const void*, void*, int, MpiHandle, MpiHandle, MpiHandle, MpiHandle*);
  int (*Test)(MpiHandle*, int*, void*);
};

class MpiLibrary {
 public:
  /// Returns the library of this process; loads and initialises one at the first call, in this order: one that already
  /// runs here, the one that BNPASS_MPI_LIBRARY names, the candidates, the usual names.
  /// Throws Error, with Code::not_implemented if there is none.
  static MpiLibrary& of_process(const std::vector<std::string>& candidates);

  /// Returns that library, or null if there has been no need for one.
  static MpiLibrary* if_loaded();

  const MpiFunctions& call() const { return functions_; }
  const MpiConstants& constant() const { return constants_; }

  /// MPI is entered by one thread at a time.
  std::mutex& mutex() { return mutex_; }

  /// Throws Error if MPI has ended, or may not be called on this thread.
  void check_usable() const;
  bool finalized() const;
  bool initialized_here() const { return initialized_here_; }
  int thread_level() const { return thread_level_; }
  const std::string& path() const { return path_; }

  /// Throws Error, naming the function, if a function of MPI did not return MPI_SUCCESS.
  void check(int result, const char* function) const;

 private:
  explicit MpiLibrary(void* handle);
  void initialize();

  void* handle_;
  std::string path_;
  MpiFunctions functions_{};
  MpiConstants constants_{};
  std::mutex mutex_;
  int thread_level_ = 0;
  bool initialized_here_ = false;
};

}  // namespace bnpass::collective

// One group of replicas that are processes of MPI.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "collective/header.h"
#include "collective/host_group.h"
#include "collective/mpi_library.h"

namespace bnpass::collective {

/// Returns the time that is a deadline away.
Clock::time_point after(Deadline deadline);

/// Whether a collective of this process never ended: then MPI_Finalize would not either.
extern std::atomic<bool> unfinished;

class MpiGroup final : public HostGroup {
 public:
  /// Takes the communicator over.
  MpiGroup(MpiLibrary& mpi, MpiHandle communicator, std::string name, Deadline deadline);
  ~MpiGroup() override;
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;

  int size() const override { return size_; }
  int rank() const override { return rank_; }
  Deadline deadline() const override { return deadline_; }
  MpiHandle communicator() const { return communicator_; }

  void all_reduce(const Call& call, void* data) override;
  void agree(const Call& call) override;
  [[noreturn]] void fail(const Call& call, const std::string& failure) override;
  void break_off(const std::string& sentence) override;

 private:
  struct Buffers;

  void run(const Call& call, Purpose purpose, void* data, const std::string& failure);
  void agree_on_header(const Call& call, Purpose purpose, const std::string& failure, Clock::time_point end);
  std::string explanation(const Call& call, Purpose purpose, const std::string& failure, Clock::time_point end);
  void reduce_payload(const Call& call, void* data, Clock::time_point end);
  void reduce_in_place(const Call& call, void* words, size_t count, MpiHandle type, MpiHandle operation,
                       Clock::time_point end);
  void start(void* words, size_t count, MpiHandle type, MpiHandle operation, MpiHandle& request);
  void abandon();
  MpiHandle type_of(Wire wire) const;
  MpiHandle operation_of(Reduction reduction) const;

  MpiLibrary& mpi_;
  MpiHandle communicator_;
  const std::string name_;
  const Deadline deadline_;
  int size_ = 0;
  int rank_ = 0;
  std::mutex in_use_;
  std::unique_ptr<Buffers> buffers_;
  std::optional<std::string> failure_;
};

}  // namespace bnpass::collective

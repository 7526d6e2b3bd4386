#include "collective/mpi_groups.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "collective/header.h"
#include "collective/mpi_group.h"
#include "collective/mpi_library.h"
#include "collective/mpi_wait.h"
#include "core/error.h"

namespace bnpass::collective {
namespace {

/// Waits until all processes are here: making a communicator has no deadline.
void meet(MpiLibrary& mpi, MpiHandle communicator, Deadline deadline) {
  MpiHandle request = 0;
  {
    const std::lock_guard<std::mutex> lock(mpi.mutex());
    mpi.check(mpi.call().Ibarrier(communicator, &request), "MPI_Ibarrier");
  }
  if (wait_until(mpi, request, after(deadline))) return;
  unfinished = true;
  throw Error("not all replicas came to make their groups within " + seconds_text(deadline.count()), Code::runtime);
}

std::shared_ptr<MpiGroup> duplicate(MpiLibrary& mpi, MpiHandle communicator, Deadline deadline) {
  meet(mpi, communicator, deadline);
  const std::lock_guard<std::mutex> lock(mpi.mutex());
  MpiHandle copy = 0;
  mpi.check(mpi.call().Comm_dup(communicator, &copy), "MPI_Comm_dup");
  return std::make_shared<MpiGroup>(mpi, copy, kWorld, deadline);
}

/// Returns the group of the members, or null on the replicas that are not among them.
std::shared_ptr<MpiGroup> part(MpiLibrary& mpi, const MpiGroup& world, const SubGroup& sub_group) {
  const int rank = rank_in(sub_group, world.rank());
  const bool member = rank >= 0;
  const std::lock_guard<std::mutex> lock(mpi.mutex());
  MpiHandle communicator = 0;
  mpi.check(mpi.call().Comm_split(world.communicator(), member ? 1 : 0, member ? rank : world.rank(), &communicator),
            "MPI_Comm_split");
  if (member) return std::make_shared<MpiGroup>(mpi, communicator, sub_group.name, world.deadline());
  mpi.check(mpi.call().Comm_free(&communicator), "MPI_Comm_free");
  return nullptr;
}

/// FNV-1a over the bytes of names and members.
class Fingerprint {
 public:
  void add(const void* bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      value_ = (value_ ^ static_cast<const unsigned char*>(bytes)[i]) * 1099511628211u;
    }
  }
  int64_t value() const { return static_cast<int64_t>(value_); }

 private:
  uint64_t value_ = 14695981039346656037u;
};

int64_t fingerprint_of(const std::vector<SubGroup>& sub_groups) {
  Fingerprint fingerprint;
  for (const SubGroup& sub_group : sub_groups) {
    const size_t count = sub_group.members.size();
    fingerprint.add(sub_group.name.c_str(), sub_group.name.size() + 1);
    fingerprint.add(&count, sizeof count);
    fingerprint.add(sub_group.members.data(), count * sizeof(int));
  }
  return fingerprint.value();
}

void check_sub_groups(MpiGroup& world, const std::vector<SubGroup>& sub_groups) {
  Call call;
  call.wire = Wire::i64;
  call.reduction = Reduction::max;
  call.length = 2;
  call.node = "the making of groups";
  const std::string fault = fault_of(sub_groups, world.size());
  if (!fault.empty()) world.fail(call, fault);
  const int64_t own = fingerprint_of(sub_groups);
  int64_t words[2] = {own, ~own};
  world.all_reduce(call, words);
  if (words[0] != ~words[1]) {
    throw Error("replicas disagree about the names, the order or the members of their groups", Code::runtime);
  }
}

int launched() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) return std::atoi(value);
  }
  return 1;
}

/// Each process of a job that was launched by another MPI's mpiexec would believe to be alone.
void check_launcher(MpiLibrary& mpi) {
  int size = 0;
  mpi.check(mpi.call().Comm_size(mpi.constant().comm_world, &size), "MPI_Comm_size");
  if (size == 1 && launched() > 1) {
    throw Error(
        "this process is one of " + std::to_string(launched()) + ", but " + mpi_description() +
        " sees it alone: use the mpiexec of that library, or set BNPASS_MPI_LIBRARY to the library of this mpiexec");
  }
}

}  // namespace

std::shared_ptr<Groups> mpi_groups(const MpiOptions& options, const std::vector<SubGroup>& sub_groups) {
  if (!(options.deadline.count() > 0)) {
    throw Error("a deadline is more than 0 s, not " + seconds_text(options.deadline.count()));
  }
  MpiLibrary& mpi = MpiLibrary::of_process(options.libraries);
  mpi.check_usable();
  check_launcher(mpi);
  const MpiHandle base =
      options.communicator ? static_cast<MpiHandle>(*options.communicator) : mpi.constant().comm_world;
  const auto world = duplicate(mpi, base, options.deadline);
  check_sub_groups(*world, sub_groups);
  auto groups = std::make_shared<NamedGroups>(sub_groups);
  for (const SubGroup& sub_group : sub_groups) {
    if (auto group = part(mpi, *world, sub_group)) groups->add(sub_group.name, std::move(group));
  }
  groups->add(kWorld, world);
  return groups;
}

std::string mpi_description() {
  const MpiLibrary* mpi = MpiLibrary::if_loaded();
  if (mpi == nullptr) return "";
  return std::string(mpi->constant().family) + ", " + mpi->path() + ", thread level " +
         std::to_string(mpi->thread_level());
}

void mpi_end(bool broken) {
  MpiLibrary* mpi = MpiLibrary::if_loaded();
  if (mpi == nullptr || mpi->finalized()) return;
  if (broken || unfinished) {
    std::fprintf(stderr, "bnpass: %s: the MPI job ends here\n",
                 broken ? "this replica ends by an error" : "a collective of this replica never ended");
    mpi_abort(1);
  } else if (mpi->initialized_here()) {
    mpi->call().Finalize();
  }
}

void mpi_abort(int code) {
  MpiLibrary* mpi = MpiLibrary::if_loaded();
  if (mpi != nullptr && !mpi->finalized()) mpi->call().Abort(mpi->constant().comm_world, code);
}

}  // namespace bnpass::collective

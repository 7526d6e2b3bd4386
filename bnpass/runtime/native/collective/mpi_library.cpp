#include "collective/mpi_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "core/error.h"

namespace bnpass::collective {
namespace {

// Libraries by the names that mpi4py and the wheels load them by; the last is Debian's MPICH.
constexpr const char* kSonames[] = {"libmpi_abi.so.1", "libmpi.so.12", "libmpi.so.40", "libmpich.so.12"};
constexpr const char* kEnvironment = "BNPASS_MPI_LIBRARY";
constexpr int kOpen = RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE;

MpiLibrary* the_library = nullptr;
std::mutex the_library_mutex;

bool is_initialized(void* handle) {
  const auto initialized = reinterpret_cast<int (*)(int*)>(dlsym(handle, "MPI_Initialized"));
  int flag = 0;
  return initialized != nullptr && initialized(&flag) == 0 && flag != 0;
}

/// Returns an MPI that is in the process, or null.
void* present(bool must_run) {
  for (const char* name : kSonames) {
    void* handle = dlopen(name, kOpen | RTLD_NOLOAD);
    if (handle != nullptr && (!must_run || is_initialized(handle))) return handle;
  }
  void* program = dlopen(nullptr, RTLD_LAZY);  // an MPI of any other name that the program was linked with
  return program != nullptr && is_initialized(program) ? program : nullptr;
}

void* opened_from_environment() {
  const char* path = std::getenv(kEnvironment);
  if (path == nullptr || *path == '\0') return nullptr;
  void* handle = dlopen(path, kOpen);
  if (handle == nullptr) throw Error(std::string(kEnvironment) + " names no MPI library: " + dlerror());
  return handle;
}

void* opened(const std::vector<std::string>& candidates) {
  if (void* handle = present(true)) return handle;
  if (void* handle = opened_from_environment()) return handle;
  if (void* handle = present(false)) return handle;
  std::string tried;
  for (const std::string& path : candidates) {
    if (void* handle = dlopen(path.c_str(), kOpen)) return handle;
    tried += (tried.empty() ? "" : ", ") + path;
  }
  for (const char* name : kSonames) {
    if (void* handle = dlopen(name, kOpen)) return handle;
    tried += (tried.empty() ? "" : ", ") + std::string(name);
  }
  throw Error("no MPI library was found; tried " + tried, Code::not_implemented);
}

void* symbol(void* handle, const char* name) {
  void* address = dlsym(handle, name);
  if (address == nullptr) throw Error(std::string("this is no MPI library: it has no '") + name + "'");
  return address;
}

template <class F>
void load(void* handle, const char* name, F& function) {
  function = reinterpret_cast<F>(symbol(handle, name));
}

MpiFunctions functions_of(void* handle) {
  MpiFunctions f{};
  load(handle, "MPI_Initialized", f.Initialized);
  load(handle, "MPI_Finalized", f.Finalized);
  load(handle, "MPI_Init_thread", f.Init_thread);
  load(handle, "MPI_Query_thread", f.Query_thread);
  load(handle, "MPI_Is_thread_main", f.Is_thread_main);
  load(handle, "MPI_Finalize", f.Finalize);
  load(handle, "MPI_Abort", f.Abort);
  load(handle, "MPI_Error_string", f.Error_string);
  load(handle, "MPI_Comm_rank", f.Comm_rank);
  load(handle, "MPI_Comm_size", f.Comm_size);
  load(handle, "MPI_Comm_dup", f.Comm_dup);
  load(handle, "MPI_Comm_split", f.Comm_split);
  load(handle, "MPI_Comm_free", f.Comm_free);
  load(handle, "MPI_Comm_set_errhandler", f.Comm_set_errhandler);
  load(handle, "MPI_Ibarrier", f.Ibarrier);
  load(handle, "MPI_Iallreduce", f.Iallreduce);
  load(handle, "MPI_Test", f.Test);
  return f;
}

void* word(uintptr_t value) { return reinterpret_cast<void*>(value); }

MpiConstants standard_abi() {
  return {"MPI standard ABI", 0x101, 0x210, 0x214, 0x258, 0x21, 0x23, 0x22, 0x143, word(1), nullptr, 2048, 4096, false};
}

MpiConstants mpich_family() {
  return {"MPICH family", 0x44000000, 0x4c00040a,          0x4c00080b, 0x4c00083a, 0x58000003, 0x58000001,
          0x58000002,     0x54000001, word(~uintptr_t{0}), word(1),    2,          3,          true};
}

MpiConstants open_mpi(void* handle) {
  const auto data = [handle](const char* name) { return reinterpret_cast<MpiHandle>(symbol(handle, name)); };
  return {"Open MPI",
          data("ompi_mpi_comm_world"),
          data("ompi_mpi_float"),
          data("ompi_mpi_double"),
          data("ompi_mpi_int64_t"),
          data("ompi_mpi_op_sum"),
          data("ompi_mpi_op_max"),
          data("ompi_mpi_op_min"),
          data("ompi_mpi_errors_return"),
          word(1),
          nullptr,
          2,
          3,
          false};
}

bool has_standard_abi(void* handle) {
  const auto get_version = reinterpret_cast<int (*)(int*, int*)>(dlsym(handle, "MPI_Abi_get_version"));
  int major = 0;
  int minor = 0;
  return get_version != nullptr && get_version(&major, &minor) == 0 && major > 0;
}

MpiConstants constants_of(void* handle) {
  if (has_standard_abi(handle)) return standard_abi();
  return dlsym(handle, "ompi_mpi_comm_world") != nullptr ? open_mpi(handle) : mpich_family();
}

std::string path_of(void* handle) {
  Dl_info info{};
  return dladdr(dlsym(handle, "MPI_Init_thread"), &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

}  // namespace

MpiLibrary& MpiLibrary::of_process(const std::vector<std::string>& candidates) {
  const std::lock_guard<std::mutex> lock(the_library_mutex);
  if (the_library == nullptr) the_library = new MpiLibrary(opened(candidates));  // never freed: MPI cannot start twice
  return *the_library;
}

MpiLibrary* MpiLibrary::if_loaded() {
  const std::lock_guard<std::mutex> lock(the_library_mutex);
  return the_library;
}

MpiLibrary::MpiLibrary(void* handle)
    : handle_(handle), path_(path_of(handle)), functions_(functions_of(handle)), constants_(constants_of(handle)) {
  initialize();
}

void MpiLibrary::initialize() {
  int running = 0;
  check(functions_.Initialized(&running), "MPI_Initialized");
  if (running != 0) {
    if (!finalized()) check(functions_.Query_thread(&thread_level_), "MPI_Query_thread");
    return;
  }
  int result = functions_.Init_thread(nullptr, nullptr, constants_.multiple, &thread_level_);
  if (result != 0 && !path_.empty()) {
    // Plug-ins of an old Open MPI look for its symbols among the global ones.
    dlopen(path_.c_str(), RTLD_LAZY | RTLD_GLOBAL | RTLD_NODELETE);
    result = functions_.Init_thread(nullptr, nullptr, constants_.multiple, &thread_level_);
  }
  check(result, "MPI_Init_thread");
  initialized_here_ = true;
}

bool MpiLibrary::finalized() const {
  int flag = 0;
  return functions_.Finalized(&flag) != 0 || flag != 0;
}

void MpiLibrary::check_usable() const {
  if (finalized()) throw Error("MPI has been finalized, and cannot be used any more", Code::runtime);
  if (thread_level_ >= constants_.serialized) return;
  int main_thread = 0;
  functions_.Is_thread_main(&main_thread);
  if (main_thread == 0) {
    throw Error("MPI was initialized for one thread (thread level " + std::to_string(thread_level_) +
                    "), and this is another: initialize it with MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE",
                Code::runtime);
  }
}

void MpiLibrary::check(int result, const char* function) const {
  if (result == 0) return;
  char text[4096] = "";
  int length = 0;
  functions_.Error_string(result, text, &length);
  throw Error(std::string(function) + " failed: " + text, Code::runtime);
}

}  // namespace bnpass::collective

// tamis._native: what was built, what this machine is, and what it can do at best. No torch, no arithmetic of its own.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif
#include "kernels/common/probe.h"
#include "huge_pages.h"
#include "isa.h"
#include "native.h"

namespace py = pybind11;

namespace tamis {
namespace {

struct Level {
  const char* name;
  const ProbeKernels& kernels;
  bool runs;
};

const std::vector<Level>& levels() {  // best first
#define TAMIS_LEVEL(name, runs) {#name, name::probe, runs},
  static const std::vector<Level> all = {TAMIS_EACH_ISA(TAMIS_LEVEL)};
#undef TAMIS_LEVEL
  return all;
}

const Level& level(const std::string& isa) {  // empty: the best
  for (const Level& l : levels())
    if (isa.empty() ? l.runs : isa == l.name) {
      if (!l.runs) throw std::invalid_argument("tamis._native: isa: expected one that runs here, got " + isa);
      return l;
    }
  throw std::invalid_argument("tamis._native: isa: expected one that was compiled, got " + isa);
}

std::string cpu_name() {
#ifdef __x86_64__
  unsigned regs[12] = {};
  unsigned highest = 0, unused = 0;
  if (__get_cpuid(0x80000000, &highest, &unused, &unused, &unused) && highest >= 0x80000004) {
    for (unsigned i = 0; i < 3; ++i)
      __get_cpuid(0x80000002 + i, &regs[4 * i], &regs[4 * i + 1], &regs[4 * i + 2], &regs[4 * i + 3]);
    const std::string name(reinterpret_cast<const char*>(regs),
                           strnlen(reinterpret_cast<const char*>(regs), sizeof regs));
    const size_t first = name.find_first_not_of(' '), last = name.find_last_not_of(' ');
    if (first != std::string::npos) return name.substr(first, last - first + 1);
  }
#endif
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    for (const char* key : {"model name", "Hardware", "CPU part"})
      if (line.rfind(key, 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return "unknown";
}

py::dict isa_report() {
  std::vector<std::string> compiled, runs;
  for (const Level& l : levels()) {
    compiled.push_back(l.name);
    if (l.runs) runs.push_back(l.name);
  }
  py::dict features;
#ifdef __x86_64__
#define TAMIS_FEATURE(name) features[name] = bool(__builtin_cpu_supports(name));
  // clang-format off
  TAMIS_FEATURE("ssse3")
  TAMIS_FEATURE("sse4.2")
  TAMIS_FEATURE("avx") TAMIS_FEATURE("avx2") TAMIS_FEATURE("fma") TAMIS_FEATURE("avx512f") TAMIS_FEATURE("avx512bw")
      TAMIS_FEATURE("avx512dq") TAMIS_FEATURE("avx512vl") TAMIS_FEATURE("avx512vbmi") TAMIS_FEATURE("avx512vnni")
          TAMIS_FEATURE("avx512bf16")
  // clang-format on
#undef TAMIS_FEATURE
#endif
          py::dict report;
  report["compiled"] = compiled;
  report["runs"] = runs;
  report["best"] = runs.empty() ? "" : runs[0];
  report["cpu"] = cpu_name();
  report["features"] = features;
  return report;
}

struct Buffer {  // aligned, in huge pages where the system gives them, and touched
  explicit Buffer(int64_t bytes) {
    constexpr int64_t kHuge = 2 << 20;
    const int64_t alignment = bytes >= kHuge ? kHuge : kProbeStep;
    data = static_cast<char*>(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
    if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (alignment == kHuge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    for (int64_t i = 0; i < kProbeStep; i += 4) {  // floats in (-16, 0]: what exp gets, and any byte for a shuffle
      const float x = -float(uint32_t(i) * 2654435761u >> 16) / 4096;
      memcpy(data + i, &x, 4);
    }
    for (int64_t done = kProbeStep; done < bytes; done *= 2) memcpy(data + done, data, std::min(done, bytes - done));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  char* data;
};

using Clock = std::chrono::steady_clock;

class Prober {  // one kind of work, with its buffers, to be timed again and again
 public:
  Prober(const std::string& kind, const std::string& isa, int64_t bytes, int threads) {
    const ProbeKernels& kernels = level(isa).kernels;
    const struct {
      const char* name;
      Probe kernel;
      int64_t from, to;
    } kinds[] = {// bytes, of all threads
                 {"copy", kernels.copy, bytes / 2, bytes / 2},
                 {"read", kernels.read, bytes, 0},
                 {"fma", kernels.fma, 0, 0},
                 {"exp", kernels.exp, 0, 0},
                 {"shuffle", kernels.shuffle, 0, 0}};
    if (threads < 1 || bytes < 1)
      throw std::invalid_argument("tamis._native: bytes, threads: expected positive numbers");
    for (const auto& k : kinds) {
      if (kind != k.name) continue;
      kernel_ = k.kernel;
      bytes_ = share(k.from, threads);
      for (int i = 0; i < threads; ++i) workers_.push_back(std::make_unique<Worker>(bytes_, share(k.to, threads)));
      while (run() < kShortest && passes_ < int64_t(1) << 40) passes_ *= 2;
      return;
    }
    throw std::invalid_argument("tamis._native: kind: expected copy, read, fma, exp or shuffle, got " + kind);
  }

  // Work a second of all threads together, from the first one's start to the last one's end.
  double rate() {
    const double seconds = run();
    double work = 0;
    for (const auto& w : workers_) work += w->work;
    return work / seconds;
  }

  double best(double seconds) {
    const auto until = Clock::now() + std::chrono::duration<double>(seconds);
    double best = rate();
    while (Clock::now() < until) best = std::max(best, rate());
    return best;
  }

 private:
  static constexpr double kShortest = 1e-3;  // seconds that a repeat lasts at least

  struct Worker {
    Worker(int64_t from_bytes, int64_t to_bytes) : from(from_bytes), to(to_bytes) {}
    Buffer from, to;
    double work = 0;
    Clock::time_point begin, end;
  };

  static int64_t share(int64_t bytes, int threads) {
    return std::max<int64_t>(1, bytes / threads / kProbeStep) * kProbeStep;
  }

  double run() {  // seconds
    std::atomic<size_t> waiting{workers_.size()};
    const auto work = [&](Worker& w) {
      for (--waiting; waiting.load();) std::this_thread::yield();  // all start together
      w.begin = Clock::now();
      w.work = kernel_(w.from.data, w.to.data, bytes_, passes_);
      w.end = Clock::now();
    };
    std::vector<std::thread> threads;
    for (size_t i = 1; i < workers_.size(); ++i) threads.emplace_back(work, std::ref(*workers_[i]));
    work(*workers_[0]);
    for (std::thread& t : threads) t.join();
    Clock::time_point begin = workers_[0]->begin, end = workers_[0]->end;
    for (const auto& w : workers_) begin = std::min(begin, w->begin), end = std::max(end, w->end);
    return std::chrono::duration<double>(end - begin).count();
  }

  Probe kernel_ = nullptr;
  int64_t bytes_ = 0, passes_ = 1;
  std::vector<std::unique_ptr<Worker>> workers_;
};

double probe(const std::string& kind, const std::string& isa, double seconds, int64_t bytes, int threads) {
  if (!(seconds > 0)) throw std::invalid_argument("tamis._native.probe: seconds: expected a positive number");
  return Prober(kind, isa, bytes, threads).best(seconds);
}

}  // namespace
}  // namespace tamis

PYBIND11_MODULE(_native, m) {
  m.doc() = "What was built, what this machine is, and what it can do at best; queries of an index.";
  m.def("isa_report", &tamis::isa_report,
        "Instruction sets compiled and runnable (best first), the CPU's name and features.");
  m.def(
      "move_to_huge_pages",
      [](uintptr_t address, int64_t bytes) { tamis::advise_huge_pages((void*)address, bytes, true); },
      py::arg("address"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>(),
      "What lies there, where it is large and the system can. TAMIS_HUGE_PAGES=0: not.");
  m.def(
      "probe", &tamis::probe, py::arg("kind"), py::arg("isa") = "", py::arg("seconds") = 0.1,
      py::arg("bytes") = int64_t(256) << 20, py::arg("threads") = 1, py::call_guard<py::gil_scoped_release>(),
      "The best of many short repeats: copy (bytes/s read and written), read (bytes/s), fma (FLOP/s), exp (1/s) or "
      "shuffle (bytes/s).\n\nisa: empty for the best; seconds: of measuring; bytes: the working set of copy and read, "
      "of all threads together.");
  py::class_<tamis::Prober>(m, "Probe", "A probe that keeps its buffers, to be run between other measurements.")
      .def(py::init<const std::string&, const std::string&, int64_t, int>(), py::arg("kind"), py::arg("isa") = "",
           py::arg("bytes") = int64_t(256) << 20, py::arg("threads") = 1, py::call_guard<py::gil_scoped_release>())
      .def("rate", &tamis::Prober::rate, py::call_guard<py::gil_scoped_release>(), "Work a second, once.");
  tamis::bind_search(m);
}

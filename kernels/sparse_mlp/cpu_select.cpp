// Which neurons of a token fire, and what a gradient of their hidden values means for their pre-activations.
// Floor: the pre-activations read once. Hidden values are formed in cache, all of them: an order by pre-activations
// would be another one where two activations round to the same number.
#include "activation.h"
#include "choose.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

// The hidden value, and what is compared: its size where there is a gate.
template <class R, class T, Activation kActivation>
void form(const T* up, const T* gate, int64_t n, R* hidden, R* size) {
  using V = Vector<R>;
  for (int64_t i = 0; i < n; i += kLanes<V>) {
    const bool whole = n - i >= kLanes<V>;
    const auto read = [&](const T* p) {
      return whole ? load(p + i) : load_tail(p + i, n - i, 0);  // equivalent: fill: any fill, nobody reads past n
    };
    const V u = read(up);
    V h;
    if (gate) {
      h = act<kActivation>(read(gate)) * u;
      store(size + i, h < 0 ? -h : h);
    } else {
      h = act<kActivation>(u);
    }
    store(hidden + i, h);
  }
}

// Whether a hidden value of 0 may yet have a gradient: not behind a relu that is off.
template <Activation kActivation, class R>
bool learns(bool gated, R gate) {
  return (kActivation != relu && kActivation != squared_relu) || (gated && !(gate <= 0));
}

template <class T>
struct Rows {
  const Select& op;
  int64_t begin, end;
  void* scratch;

  template <Activation kActivation>
  void run() const {
    using R = Real<T>;
    const int64_t n = op.up.classes, k = op.k, padded = (n + 63) / 64 * 64;
    const bool gated = op.gate.data;
    R *const hidden = static_cast<R*>(scratch), *const size = gated ? hidden + padded : hidden;
    const Work<R> w(static_cast<double*>(scratch) + 2 * padded, n, k);
    for (int64_t r = begin; r < end; ++r) {
      const T *const up = row_of<T>(op.up, r), *const gate = gated ? row_of<T>(op.gate, r) : nullptr;
      form<R, T, kActivation>(up, gate, n, hidden, size);
      const int64_t* const chosen = choose(size, n, w, false);
      int64_t at = r * k;
      for (int64_t j = 0; j < k; ++j) {
        const int64_t i = chosen[j];
        if (hidden[i] == 0 && !(op.up_at && learns<kActivation>(gated, gated ? R(number(gate + i)) : R(0)))) continue;
        op.index[at] = int32_t(i), static_cast<R*>(op.hidden)[at] = hidden[i];
        if (op.up_at) static_cast<R*>(op.up_at)[at] = number(up + i);
        if (op.gate_at) static_cast<R*>(op.gate_at)[at] = number(gate + i);
        ++at;
      }
      op.count[r] = int32_t(at - r * k);
    }
  }
};

template <class T>
void select(const Select& op, int64_t begin, int64_t end, void* scratch) {
  with_activation(op.activation, Rows<T>{op, begin, end, scratch});
}

template <class R>
struct Slopes {
  const Slope& op;
  int64_t begin, end;

  template <Activation kActivation>
  void run() const {
    using V = Vector<R>;
    const auto at = [](const void* p, int64_t i) { return static_cast<const R*>(p) + i; };
    const auto out = [](void* p, int64_t i) { return static_cast<R*>(p) + i; };
    for (int64_t i = begin; i < end; i += kLanes<V>) {
      const int64_t left = end - i;
      const auto read = [&](const void* p) {
        return left < kLanes<V> ? load_tail(at(p, i), left, 0) : load(at(p, i));  // equivalent: fill: any fill
      };
      const auto write = [&](void* p, V v) { left < kLanes<V> ? store_tail(out(p, i), left, v) : store(out(p, i), v); };
      const V d = read(op.d_hidden), up = read(op.up_at);
      if (!op.gate_at) {
        write(op.d_up, d * slope<kActivation>(up));
        continue;
      }
      const V gate = read(op.gate_at);
      write(op.d_up, d * act<kActivation>(gate));
      write(op.d_gate, d * up * slope<kActivation>(gate));
    }
  }
};

template <class R>
void slopes(const Slope& op, int64_t begin, int64_t end, void*) {
  with_activation(op.activation, Slopes<R>{op, begin, end});
}

}  // namespace

const RowKernel<Select> select_kernels[kDtypes] = {select<float>, select<double>, select<Float16>, select<BFloat16>};
const RowKernel<Slope> slope_kernels[2] = {slopes<float>, slopes<double>};

int64_t select_scratch_bytes(int64_t n, int64_t k) {  // hidden values, their sizes, and what choosing needs
  return 16 * ((n + 63) / 64 * 64) + choose_scratch_bytes(n, k);
}

}  // namespace tamis::TAMIS_ISA

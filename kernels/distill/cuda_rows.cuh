// Distillation loss and its gradient, a block's rows in its shared memory. The semantics are those of cpu_form.cpp and
// triton_kernels.py.
// Floor: both logits read once, the gradient written once; two exponentials a class and two more for the gradient, half
// as many again where a target asks for the student's softmax at temperature 1; none for logit_mse; jsd four
// logarithms. No more than that floor is moved, whatever L2 holds: a block reads both rows once, adds them up as they
// come, and keeps them for what needs the sums. Which rows come here is for pysrc/tamis/distill/cuda_choice.py to say.
#pragma once
#include "../common/numbers.cuh"
#include "../common/row.cuh"
#include "cuda_rows.h"

namespace tamis::cuda {

constexpr float kLog2e = 1.44269504f;
constexpr int kAhead = 2;  // slices of each row that a thread waits for

// Of 16 bytes each: what a block keeps of one model, wherever its row begins.
template <class T>
__host__ __device__ constexpr int64_t most_slices(int64_t classes) {
  return (classes + 2 * (kLanes<T> - 1)) / kLanes<T>;
}

template <class T>
__device__ inline T* row_of(const Matrix& m, int64_t row) {
  return static_cast<T*>(const_cast<void*>(m.data)) + row / m.group * m.group_stride + row % m.group * m.stride;
}

struct Model {  // logit scale, then softcap
  float scale, cap, scale_in_cap, inverse_cap;

  __device__ explicit Model(const LogitTransform& t)
      : scale(float(t.scale)), cap(float(t.cap)), scale_in_cap(scale / cap), inverse_cap(1 / cap) {}
  __device__ float operator()(float x) const { return cap == 0 ? x * scale : cap * tanhf(x * scale_in_cap); }
  __device__ float slope(float y) const {  // where it is y
    const float part = y * inverse_cap;
    return cap == 0 ? scale : scale * (1 - part * part);
  }
};

struct Asked {  // by a row
  float tau, soft, weight;
  int64_t label;
  bool skipped, bad;

  __device__ Asked(const DistillRows& op, int64_t row, bool alone)
      : tau(op.temperature[row * op.temperature_step]),
        soft(op.alpha[row * op.alpha_step]),
        weight(op.row_weight ? op.row_weight[row] : 1),
        label(op.target ? op.target[row] : -1) {
    skipped = weight == 0 || (op.target && label == op.ignore_index);
    const bool given = op.target ? label >= 0 && label < op.student.classes : soft == 1;
    const bool mixed = alone ? soft == 0 : soft >= 0 && soft <= 1;
    bad = !(tau > 0 && tau < INFINITY && mixed && given && weight == fabsf(weight));  // so that NaN is bad
  }
};

// What a thread has added up, then the row. Relative to the maxima:
enum Summed {
  kStudentSum,  // of exp((s - shift) / tau)
  kTeacherSum,
  kDifference,  // of u = (t - shift_t) - (s - shift_s): forward exp((t - shift_t) / tau) * u, reverse
                // exp((s - shift_s) / tau) * -u; logit_mse (s - t)^2
  kHardSum,     // of exp(s - shift), where that is wanted
  kTotal,       // of s - origin, for label smoothing
  kSums
};
struct Sums {
  float top[2] = {-INFINITY, -INFINITY};  // student, teacher
  float sum[kSums] = {};
};

__device__ inline float shift_of(float top) { return top == -INFINITY ? 0 : top; }  // -inf minus -inf would be NaN
__device__ inline float rescale(float old, float top, float exponent) {
  return old == top ? 1 : exp2f((old - top) * exponent);
}

// exponent: log2(e) / tau, for exponentials by exp2f.
template <Divergence kDivergence>
__device__ inline void rebase(Sums& x, const float (&top)[2], float exponent) {
  x.sum[kHardSum] *= rescale(x.top[0], top[0], kLog2e);
  if constexpr (kDivergence != kLogitMse) {
    const float by_s = rescale(x.top[0], top[0], exponent);
    if constexpr (kDivergence != kAlone) {
      const float by_t = rescale(x.top[1], top[1], exponent);
      const float moved = shift_of(x.top[1]) - shift_of(top[1]) - (shift_of(x.top[0]) - shift_of(top[0]));
      float& u = x.sum[kDifference];
      if constexpr (kDivergence == kForwardKl)
        u = x.sum[kTeacherSum] * by_t == 0 ? 0 : by_t * (u + x.sum[kTeacherSum] * moved);
      if constexpr (kDivergence == kReverseKl)
        u = x.sum[kStudentSum] * by_s == 0 ? 0 : by_s * (u - x.sum[kStudentSum] * moved);
      x.sum[kTeacherSum] *= by_t;
    }
    x.sum[kStudentSum] *= by_s;
  }
  x.top[0] = top[0];
  x.top[1] = top[1];
}

// A slice's classes join the sums. A NaN is passed over by the maxima and stays in the sums; no probability adds
// nothing, also at -inf in both.
template <Divergence kDivergence, int kCount>
__device__ inline void add(Sums& x, const float (&s)[kCount], const float (&t)[kCount], float exponent, bool hard) {
  float top[2] = {x.top[0], x.top[1]};
#pragma unroll
  for (int i = 0; i < kCount; ++i) top[0] = fmaxf(top[0], s[i]), top[1] = fmaxf(top[1], t[i]);
  if (top[0] != x.top[0] || top[1] != x.top[1]) rebase<kDivergence>(x, top, exponent);  // equivalent: check: else by 1
  const float shift_s = shift_of(top[0]), shift_t = shift_of(top[1]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float us = s[i] - shift_s, ut = t[i] - shift_t;
    float& u = x.sum[kDifference];
    if constexpr (kDivergence == kLogitMse) {
      const float d = s[i] == t[i] ? 0 : s[i] - t[i];
      u += d * d;
    } else {
      const float a = exp2f(us * exponent);
      x.sum[kStudentSum] += a;
      if constexpr (kDivergence != kAlone) {
        const float b = exp2f(ut * exponent);
        x.sum[kTeacherSum] += b;
        if constexpr (kDivergence == kForwardKl) u += b == 0 ? 0 : b * (ut - us);
        if constexpr (kDivergence == kReverseKl) u += a == 0 ? 0 : a * (us - ut);
      }
    }
  }
  if (hard) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x.sum[kHardSum] += exp2f((s[i] - shift_s) * kLog2e);
  }
}

// Of jsd p log(p / m), else p sign(p - q): what the gradient is made of.
template <Divergence kDivergence>
__device__ inline float slope_of(float p, float q, float beta) {
  if constexpr (kDivergence == kJsd) {
    const float m = p + beta * (q - p);  // 0 of subnormals
    return p == 0 || m == 0 ? 0 : p * logf(p / m);
  }
  return p > q ? p : p < q ? -p : p - q;  // NaN where one is
}

// And what the divergence adds beside it.
template <Divergence kDivergence>
__device__ inline float beside_of(float p, float q, float beta) {
  if constexpr (kDivergence == kJsd) {
    const float m = p + beta * (q - p);
    return q == 0 || m == 0 ? 0 : q * logf(q / m);
  }
  return fabsf(p - q);
}

struct Outcome {  // tau^2 times the divergence, and its gradient as exp((s - shift) / tau) * student + ... * teacher
  float value, student, teacher;
};

template <Divergence kDivergence>
__device__ inline Outcome outcome_of(const Sums& x, const float (&compared)[2], float tau, float beta, float classes) {
  const float z_s = x.sum[kStudentSum], z_t = x.sum[kTeacherSum], apart = x.sum[kDifference];
  const float slope = compared[0], beside = compared[1], mean = apart / z_s;
  switch (kDivergence) {
    case kForwardKl:
      return {tau * (apart / z_t + tau * logf(z_s / z_t)), tau / z_s, tau / z_t};
    case kReverseKl:
      return {tau * (mean + tau * logf(z_t / z_s)), -mean / z_s, 1 / z_s};
    case kJsd:
      return {tau * tau * (beta * beside + (1 - beta) * slope), -tau * (1 - beta) * slope / z_s, tau * (1 - beta)};
    case kTotalVariation:
      return {0.5f * tau * tau * beside, -0.5f * tau * slope / z_s, 0.5f * tau};
    case kLogitMse:
      return {apart / classes, 0, 2 / classes};
    default:
      return {0, 0, 0};
  }
}

template <class T>
__device__ inline void fill(T* row, float value, int64_t begin, int64_t end) {
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) store(row[i], value);
}

// -inf where the slice reaches past its row: nothing is added there.
template <class T>
__device__ inline void transform(const Slice<T>& slice, const Model& model, float (&x)[kLanes<T>]) {
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    const float y = model(load(slice.at.lane[i]));
    x[i] = slice.whole() || slice.has(i) ? y : -INFINITY;
  }
}

// A block walks rows: loss = weight * (alpha * tau^2 * D(teacher, student at tau) + (1 - alpha) * CE). A thread keeps
// its slices of both rows in the shared memory of the launch, most_slices of 16 bytes each, and alone reads them again.
template <class T, Divergence kDivergence>
__global__ void __launch_bounds__(kThreads, 1) distill_rows_kernel(const DistillRows op) {
  constexpr bool kTwo = kDivergence != kAlone, kCompares = kDivergence == kJsd || kDivergence == kTotalVariation;
  constexpr int kCount = kLanes<T>;
  __shared__ float tops[kWarps][2], sums[kWarps][kSums], compares[kWarps][2];
  Vector<T>* const kept = reinterpret_cast<Vector<T>*>(tamis_dynamic_shared);
  Vector<T>* const t_kept = kept + most_slices<T>(op.student.classes);  // of all rows: slots keep their threads
  const Model s_model(op.student_transform), t_model(op.teacher_transform);
  const int64_t classes = op.student.classes;
  for (int64_t r = blockIdx.x; r < op.rows; r += gridDim.x) {
    const Row<T> student(row_of<T>(op.student, r), classes);
    const T* const beside = kTwo ? row_of<T>(op.teacher, r) : student.x;  // equivalent: choice: unread without one
    const Row<T> teacher(beside, classes, student.past);
    T* const gradient = op.gradient.data ? row_of<T>(op.gradient, r) : nullptr;
    const Asked asked(op, r, !kTwo);
    if (gradient) fill(gradient, 0, classes, op.gradient.classes);
    if (asked.skipped || asked.bad) {
      const float value = asked.skipped ? 0 : NAN;
      if (threadIdx.x == 0) op.loss[r] = value;
      if (gradient) fill(gradient, value, 0, classes);
      continue;
    }
    const float tau = asked.tau, exponent = (kTwo ? 1 / tau : 1) * kLog2e;
    const float at_target = op.target ? s_model(load(student.x[asked.label])) : 0;
    const float origin = fabsf(at_target) < INFINITY ? at_target : 0;
    const bool smooth = op.target && op.label_smoothing > 0;

    const int slices = int(student.slices());
    Sums x;
    Vector<T> s_ahead[kAhead], t_ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      s_ahead[k] = student.slice(threadIdx.x + k * kThreads).at;
      if constexpr (kTwo) t_ahead[k] = teacher.slice(threadIdx.x + k * kThreads).at;
    }
    for (int i = threadIdx.x; i < slices; i += kThreads) {
      Slice<T> slice = student.unread(i);
      float s[kCount], t[kCount] = {};
      kept[i] = slice.at = s_ahead[0];
      transform(slice, s_model, s);
      if constexpr (kTwo) {
        t_kept[i] = slice.at = t_ahead[0];
        transform(slice, t_model, t);
      }
#pragma unroll
      for (int k = 0; k < kAhead - 1; ++k) s_ahead[k] = s_ahead[k + 1], t_ahead[k] = t_ahead[k + 1];
      s_ahead[kAhead - 1] = student.slice(i + kAhead * kThreads).at;
      if constexpr (kTwo) t_ahead[kAhead - 1] = teacher.slice(i + kAhead * kThreads).at;
      add<kDivergence>(x, s, t, exponent, op.hard);
      if (smooth) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const float centred = s[k] - origin;
          x.sum[kTotal] += slice.has(k) ? centred : 0;
        }
      }
    }
    float top[2] = {x.top[0], x.top[1]};
    block_merge(Larger(), top, tops);
    rebase<kDivergence>(x, top, exponent);
    block_merge(Added(), x.sum, sums);

    // Once more over what is kept, with both rows' logits and, where a divergence compares them, probabilities.
    const float shift_s = shift_of(top[0]), shift_t = shift_of(top[1]);
    const float over_s = 1 / x.sum[kStudentSum], over_t = 1 / x.sum[kTeacherSum];
    const auto for_each_slice = [&](const auto& visit) {
      for (int i = threadIdx.x; i < slices; i += kThreads) {
        Slice<T> slice = student.unread(i);
        float s[kCount], t[kCount] = {};
        if constexpr (kTwo) {
          slice.at = t_kept[i];
          transform(slice, t_model, t);
        }
        slice.at = kept[i];
        transform(slice, s_model, s);
        visit(slice, s, t);
      }
    };
    float compared[2] = {};
    if constexpr (kCompares) {
      for_each_slice([&](const Slice<T>&, const float (&s)[kCount], const float (&t)[kCount]) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const float p = exp2f((s[k] - shift_s) * exponent) * over_s, q = exp2f((t[k] - shift_t) * exponent) * over_t;
          compared[0] += slope_of<kDivergence>(p, q, op.beta);
          compared[1] += beside_of<kDivergence>(p, q, op.beta);
        }
      });
      block_merge(Added(), compared, compares);
    }

    // A term whose factor is 0 is left out: 0 * inf would be NaN.
    const Outcome outcome = outcome_of<kDivergence>(x, compared, tau, op.beta, float(classes));
    const float soft = asked.soft, smoothing = op.label_smoothing;
    const float z_h = x.sum[kHardSum] + (op.hard ? 0 : x.sum[kStudentSum]);  // the student's serve both terms
    float value = soft == 0 ? 0 : soft * outcome.value;
    if (op.target && soft != 1) {
      const float ce = logf(z_h) + (1 - smoothing) * (top[0] - at_target) +
                       smoothing * (top[0] - origin - x.sum[kTotal] / float(classes));
      value += (1 - soft) * ce;
    }
    if (threadIdx.x == 0) op.loss[r] = asked.weight * value;
    if (!gradient) continue;

    const float scale = asked.weight * float(*op.gradient_scale);
    const float hard = op.target ? scale * (1 - soft) : 0;  // equivalent: choice: without one soft is 1
    const float of_teacher = soft == 0 ? 0 : scale * soft * outcome.teacher, of_hard = hard == 0 ? 0 : hard / z_h;
    const float of_student = (soft == 0 ? 0 : scale * soft * outcome.student) + (op.hard ? 0 : of_hard);
    const float of_label = hard * (1 - smoothing), of_each = hard * smoothing / float(classes);
    const bool together = past_of(gradient) == student.past;
    for_each_slice([&](Slice<T>& slice, const float (&s)[kCount], const float (&t)[kCount]) {
      float g[kCount] = {};
      if (op.hard) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) g[k] = exp2f((s[k] - shift_s) * kLog2e) * of_hard;
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float us = s[k] - shift_s, ut = t[k] - shift_t;
        float a = 0, beside = 0;
        if constexpr (kDivergence != kLogitMse) a = exp2f(us * exponent);
        if constexpr (kDivergence == kForwardKl) beside = -exp2f(ut * exponent);
        if constexpr (kDivergence == kReverseKl) beside = a == 0 ? 0 : a * (us - ut);
        if constexpr (kDivergence == kLogitMse) beside = s[k] == t[k] ? 0 : s[k] - t[k];
        if constexpr (kCompares) beside = slope_of<kDivergence>(a * over_s, exp2f(ut * exponent) * over_t, op.beta);
        g[k] += (of_teacher == 0 ? 0 : beside * of_teacher) + a * of_student;
        g[k] -= of_each + (slice.first + k == asked.label ? of_label : 0);
        store(slice.at.lane[k], g[k] * s_model.slope(s[k]));
      }
      if (together && slice.whole()) {
        *reinterpret_cast<Vector<T>*>(gradient + slice.first) = slice.at;
      } else {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const T lane = slice.at.lane[k];
          if (slice.has(k)) gradient[slice.first + k] = lane;
        }
      }
    });
  }
}

}  // namespace tamis::cuda

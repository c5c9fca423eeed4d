// Drives the distill kernels of one instruction set without torch: under sanitizers (`make sanitize`), or another CPU's
// emulator. Every buffer is as long as its numbers and no longer, two threads share the rows, and results are held
// against the formulas in double.
#include "../../kernels/distill/cpu.h"
#include "driver.h"

namespace {

const DistillKernels& kernels = TAMIS_ISA::distill;
// D of one row, of logits s and t over tau; tau * dD/dz into g; doubt: the probability of classes where float cannot
// tell p from q.
double divergence(Divergence kind, double beta, const Numbers& s, const Numbers& t, Numbers& g, double& doubt) {
  const size_t n = s.size();
  const double ls = logsumexp(s), lt = logsumexp(t);
  double d = 0, mean = 0;
  for (size_t c = 0; c < n; ++c) {
    const double p = std::exp(s[c] - ls), q = std::exp(t[c] - lt), log_ratio = (s[c] - ls) - (t[c] - lt);
    const double m = beta * q + (1 - beta) * p;
    if (kind == kTotalVariation && std::fabs(log_ratio) < 1e-5) doubt += p;
    switch (kind) {
      case kForwardKl:
        d -= q * log_ratio, g[c] = p - q;
        break;
      case kReverseKl:
        d += p * log_ratio, mean += p * log_ratio, g[c] = p * log_ratio;
        break;
      case kJsd:
        d += beta * q * std::log(q / m) + (1 - beta) * p * std::log(p / m);
        mean += (1 - beta) * p * std::log(p / m), g[c] = (1 - beta) * p * std::log(p / m);
        break;
      case kTotalVariation:
        d += std::fabs(p - q) / 2, g[c] = (p > q ? 0.5 : -0.5) * p, mean += g[c];
        break;
      default:
        d += (s[c] - t[c]) * (s[c] - t[c]) / n, g[c] = 2 * (s[c] - t[c]) / n;
    }
  }
  if (kind != kForwardKl && kind != kLogitMse)
    for (size_t c = 0; c < n; ++c) g[c] -= std::exp(s[c] - ls) * mean;
  return d;
}

// By tiles of classes: what the row kernel said.
template <class R>
void check_tiles(const DistillLoss& whole, const Logits& student, const Logits& teacher, const Logits& gradient,
                 int64_t step) {
  const int64_t rows = student.rows, classes = whole.classes;
  const R* const want = static_cast<const R*>(whole.loss);
  const double doubt = whole.divergence == kTotalVariation ? 3e-3 : 2e-6;  // where p is q, either sign will do
  Array<R> state(rows * kTileState), loss(rows), one(1, 1);
  for (TileStage stage : {kSum, kCompare, kGradient})  // the loss comes with the last tile compared
    for (int64_t first = 0; first < classes; first += step) {
      const int64_t n = std::min(step, classes - first);
      Logits s = student.part(first, n), t = teacher.part(first, n);
      DistillTile tile{whole, stage, first, state.data(), one.data(), 0};
      tile.op.student = s.matrix(n), tile.op.teacher = t.matrix(n), tile.op.loss = loss.data();
      tile.op.gradient = {}, tile.op.stream_gradient = false;
      in_two_threads(rows, kernels.scratch_bytes(n), [&](int64_t begin, int64_t end, void* scratch) {
        kernels.distill_tile[s.dtype][t.dtype](tile, begin, end, scratch);
      });
      for (int64_t r = 0; r < rows && stage == kGradient; ++r)
        for (int64_t c = 0; c < n; ++c) {
          const double got = s.at(r, c), row = gradient.at(r, first + c);
          expect(std::fabs(got - row) <= 2 * kEps[s.dtype] * std::fabs(row) + doubt, "tile's gradient", s.dtype,
                 t.dtype, classes, got, row);
        }
    }
  for (int64_t r = 0; r < rows; ++r) {  // as far apart as either may be from the truth
    const double tau = static_cast<const R*>(whole.temperature)[r], slack = (1 + tau) * (1 + tau);
    expect(std::fabs(loss[r] - want[r]) <= 1e-5 * (slack + std::fabs(want[r])), "tile's loss", student.dtype,
           teacher.dtype, classes, loss[r], want[r]);
  }
}

template <class R>
void check(Dtype ds, Dtype dt, int64_t classes, int variant, Divergence kind) {
  std::mt19937 random(classes * 31 + variant);
  const double loose = ds == f64 ? 1e-9 : 1;  // of what follows, for double
  const int64_t rows = 5, padding = variant == 3 ? 1 : variant % 3, width = classes + padding;
  Logits student(ds, rows, width, variant % 2 * 3), teacher(dt, rows, classes, variant),
      gradient(ds, rows, width, variant != 3, true);
  student.fill(random, 3, variant == 0 ? -20 : 0, variant == 1 ? 30 : 0);
  teacher.fill(random, 3, 0, variant == 1 ? -20 : variant == 3 ? 30 : 0);
  const int64_t places[] = {classes - 1, std::min<int64_t>(1024, classes - 1), 0, std::min<int64_t>(1023, classes - 1)};
  for (int64_t r = 0; r < 4 && variant == 0; ++r)  // beside which the others vanish
    student.put(r, places[r], kHundred), teacher.put(r, places[r], kHundred);
  const LogitTransform of_student = {variant == 3 ? 0.5 : 1, variant >= 2 ? 4.0 : 0}, of_teacher = {1, 0};
  Array<R> tau(rows), alpha(1, variant == 4 ? R(0) : R(0.25) * (variant + 1)), weight(rows), loss(rows), total(1);
  Array<int64_t> target(rows);
  for (int64_t r = 0; r < rows; ++r) {
    tau[r] = R(variant ? 0.5 + r : 1), weight[r] = R(r == 2 ? 0 : 0.5 + r), target[r] = random() % classes;
  }
  target[3] = -100, target[rows - 1] = classes - 1;
  DistillLoss op{};
  op.student = student.matrix(classes), op.teacher = teacher.matrix(classes);
  op.student_transform = of_student, op.teacher_transform = of_teacher;
  op.temperature = tau.data(), op.temperature_step = 1, op.alpha = alpha.data();
  op.classes = classes, op.divergence = kind, op.beta = 0.3;
  op.target = target.data(), op.row_weight = weight.data(), op.ignore_index = -100, op.label_smoothing = 0.1;
  op.loss = loss.data(), op.gradient = gradient.matrix(width), op.gradient_scale = 0.5,
  op.stream_gradient = variant % 2;
  constexpr int real = sizeof(R) == 8;
  kernels.plan[real](op, rows);
  in_two_threads(rows, kernels.scratch_bytes(classes), [&](int64_t begin, int64_t end, void* scratch) {
    kernels.distill_loss[ds][dt](op, begin, end, scratch);
  });
  kernels.reduce[real](loss.data(), rows, 2, total.data());
  DistillLoss other = op;  // without a gradient
  Array<R> loss_alone(rows);
  other.gradient = {}, other.loss = loss_alone.data(), other.stream_gradient = false;
  in_two_threads(rows, kernels.scratch_bytes(classes), [&](int64_t begin, int64_t end, void* scratch) {
    kernels.distill_loss[ds][dt](other, begin, end, scratch);
  });

  double sum = 0, kept_weight = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const bool kept = weight[r] != 0 && target[r] != op.ignore_index;
    const auto s = row(student, r, classes, of_student, tau[r]), t = row(teacher, r, classes, of_teacher, tau[r]);
    const auto s1 = row(student, r, classes, of_student, 1);
    const double l1 = logsumexp(s1);
    const double soft = kept ? weight[r] * alpha[0] : 0, hard = kept ? weight[r] * (1 - alpha[0]) : 0;
    Numbers slopes(classes);
    double doubt = 0;
    const double apart = divergence(kind, op.beta, s, t, slopes, doubt);
    double ce = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const double share = 0.1 / classes + (c == target[r] ? 0.9 : 0);
      ce += share * (l1 - s1[c]);
      const double capped = of_student.cap > 0 ? s1[c] / of_student.cap : 0;
      const double slope = of_student.scale * (1 - capped * capped);
      const double want = 0.5 * slope * (soft * tau[r] * slopes[c] + hard * (std::exp(s1[c] - l1) - share));
      const double got = gradient.at(r, c), lost = 4 * classes * kEps[f64];  // by the sums here
      expect(std::fabs(got - want) <= (2 * kEps[ds] + lost) * std::fabs(want) + 3e-6 * loose + doubt * soft * tau[r],
             "gradient", ds, dt, classes, got, want);
    }
    for (int64_t c = classes; c < width; ++c)
      expect(gradient.at(r, c) == 0, "padding", ds, dt, classes, gradient.at(r, c), 0);
    const double want = soft * tau[r] * tau[r] * apart + hard * ce, slack = (1 + tau[r]) * (1 + tau[r]) * weight[r];
    expect(std::fabs(loss[r] - want) <= 1e-5 * loose * (std::fabs(want) + slack), "loss", ds, dt, classes, loss[r],
           want);
    expect(std::fabs(loss_alone[r] - want) <= 1e-5 * loose * (std::fabs(want) + slack), "loss alone", ds, dt, classes,
           loss_alone[r], want);
    sum += want, kept_weight += kept ? weight[r] : 0;
  }
  expect(op.kept_weight == kept_weight, "kept weight", ds, dt, classes, op.kept_weight, kept_weight);
  expect(gradient.gaps_untouched(), "between rows", ds, dt, classes, 0, 0);
  expect(std::fabs(total[0] - sum / 2) <= 1e-3 * (1 + std::fabs(sum)), "total", ds, dt, classes, total[0], sum / 2);

  check_tiles<R>(op, student, teacher, gradient, variant == 2 ? 1024 : (classes + 2) / 3);

  const Array<R> grad(1, 3);
  Logits scaled(ds, rows, width, 0);
  kernels.scale_rows[ds](gradient.matrix(width), grad.data(), 0, 0.5, 0, rows, variant % 2, scaled.matrix(width));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) {
      const double want = 1.5 * gradient.at(r, c), got = scaled.at(r, c);
      expect(std::fabs(got - want) <= 2 * kEps[ds] * std::fabs(want) + 6e-8, "scaled", ds, dt, classes, got, want);
    }

  Array<R> fields[2][4];
  Array<int64_t> argmax[2];
  Array<char> agree(rows);
  DeviationStats stats{student.matrix(classes), teacher.matrix(classes), of_student, of_teacher, {}, {}, {}};
  for (int model = 0; model < 2; ++model) {
    for (int i = 0; i < 4; ++i) fields[model][i].resize(rows), stats.real[model][i] = fields[model][i].data();
    argmax[model].resize(rows), stats.argmax[model] = argmax[model].data();
  }
  stats.agree = reinterpret_cast<bool*>(agree.data());
  in_two_threads(rows, kernels.scratch_bytes(classes), [&](int64_t begin, int64_t end, void* scratch) {
    kernels.deviation_stats[ds][dt](stats, begin, end, scratch);
  });
  for (int64_t r = 0; r < rows; ++r)
    for (int model = 0; model < 2; ++model) {
      const auto x = model ? row(student, r, classes, of_student, 1) : row(teacher, r, classes, of_teacher, 1);
      const double want = logsumexp(x), got = fields[model][0][r];
      expect(std::fabs(got - want) <= 2e-6 * loose * (1 + std::fabs(want)), "logsumexp", ds, dt, classes, got, want);
      double entropy = 0;
      for (double v : x) entropy += std::exp(v - want) * (want - v);
      expect(std::fabs(fields[model][1][r] - entropy) <= 1e-5 * loose * (1 + entropy), "entropy", ds, dt, classes,
             fields[model][1][r], entropy);
      const int64_t top = std::max_element(x.begin(), x.end()) - x.begin();  // the first of equals
      expect(argmax[model][r] == top, "argmax", ds, dt, classes, argmax[model][r], top);
      const double p = fields[model][2][r], q = std::exp(x[top] - want);
      expect(std::fabs(p - q) <= 1e-5 * loose * q, "max_prob", ds, dt, classes, p, q);
      Numbers others = x;
      others.erase(others.begin() + argmax[0][r]);
      const double odds = classes > 1 ? x[argmax[0][r]] - logsumexp(others) : HUGE_VAL, gotten = fields[model][3][r];
      expect(gotten == odds || std::fabs(gotten - odds) <= 1e-5 * loose * (1 + std::fabs(odds)), "log_odds", ds, dt,
             classes, gotten, odds);
      expect(agree[r] == (argmax[0][r] == argmax[1][r]), "agree", ds, dt, classes, agree[r], 0);
    }
  if (variant) return;
  Array<char> scratch((kernels.scratch_bytes(classes) + 63) / 64 * 64);
  target[0] = classes, target[1] = classes - 1;
  kernels.distill_loss[ds][dt](op, 0, 2, scratch.data());
  expect(std::isnan(loss[0]) && !std::isnan(loss[1]), "target", ds, dt, classes, loss[0], loss[1]);
  for (int64_t r = 0; r < rows; ++r) student.put(r, places[r % 4], r < 4 ? kNan : kInfinity);
  kernels.deviation_stats[ds][dt](stats, 0, rows, scratch.data());
  for (int64_t r = 0; r < rows; ++r)
    expect(argmax[1][r] == places[r % 4], "argmax", ds, dt, classes, argmax[1][r], places[r % 4]);
}

// The same of K entries a row, or of a soft target; the first row names a class that is none, or one twice.
template <class R>
void check_topk(Dtype ds, int64_t classes, int variant, Divergence kind) {
  std::mt19937 random(classes * 37 + variant);
  constexpr int real = sizeof(R) == 8;
  const double loose = real ? 1e-9 : 1;
  const int64_t rows = 5, sizes[] = {1, std::min<int64_t>(7, classes), (classes + 1) / 2, classes}, width = classes + 1;
  const int64_t entries = sizes[variant], reduced = entries + (entries < classes);
  const bool soft_target = kind == kSoftTarget, tail = variant != 2 && !soft_target;
  Logits student(ds, rows, classes, variant), gradient(ds, rows, width, 1);
  student.fill(random, 3, 0, variant == 1 ? 30 : 0);
  Array<R> tau(rows), alpha(1, R(soft_target ? 1 : 0.6)), loss(rows), values(rows * entries), lse(rows);
  Array<int64_t> target(rows), indices(rows * entries), all(classes);
  for (int64_t c = 0; c < classes; ++c) all[c] = c;
  std::normal_distribution<double> normal(0, 3);
  for (int64_t r = 0; r < rows; ++r) {
    tau[r] = R(soft_target ? 1 : variant ? 0.5 + r : 1), target[r] = random() % classes;
    std::shuffle(all.begin(), all.end(), random);
    std::copy(all.begin(), all.begin() + entries, &indices[r * entries]);
    Numbers t(entries);
    for (int64_t k = 0; k < entries; ++k) values[r * entries + k] = R(normal(random)), t[k] = values[r * entries + k];
    for (double& x : t) x /= tau[r];
    lse[r] = R(logsumexp(t) + 0.3);
    if (soft_target)
      for (int64_t k = 0; k < entries; ++k) values[r * entries + k] = R(std::exp(t[k] - logsumexp(t)));
  }
  expect(kernels.bad_index(indices.data(), entries, classes, 0, rows, all.data()) < 0, "index", ds, ds, classes, 0, 0);
  const int64_t last = indices.back();
  if (variant == 0)  // the others vanish beside the one, and beside the last of them the rest
    student.put(rows - 1, classes - 1, kHundred), student.put(rows - 1, indices[rows - 1], kFiveHundred);
  const auto spoil = [&](int64_t i) {
    indices[i] = entries > 1 && variant % 2 ? indices[i - 1] : variant == 2 ? -1 : classes;
  };
  spoil(rows * entries - 1);
  const int64_t bad = kernels.bad_index(indices.data(), entries, classes, 0, rows, all.data());
  expect(bad == int64_t(indices.size()) - 1, "bad index", ds, ds, classes, bad, indices.size() - 1);
  indices.back() = last;
  spoil(entries - 1);

  TopkLoss op{};
  DistillLoss& row_op = op.loss;
  row_op.classes = classes, row_op.student = student.matrix(classes);
  const LogitTransform f = {1, variant >= 2 ? 4.0 : 0};
  row_op.student_transform = f, row_op.teacher_transform = {1, 0};
  row_op.temperature = tau.data(), row_op.temperature_step = 1, row_op.alpha = alpha.data();
  row_op.target = soft_target ? nullptr : target.data(), row_op.ignore_index = -100, row_op.label_smoothing = 0.1;
  row_op.divergence = kForwardKl, row_op.beta = 0.3, row_op.loss = loss.data();
  row_op.gradient = gradient.matrix(width), row_op.gradient_scale = 0.5, row_op.stream_gradient = variant % 2;
  kernels.plan[real](row_op, rows);
  row_op.divergence = kind;
  op.values = values.data(), op.indices = indices.data(), op.entries = entries;
  op.logsumexp = tail ? lse.data() : nullptr;
  in_two_threads(rows, kernels.topk_scratch_bytes(classes, entries),
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.topk_loss[ds](op, begin, end, scratch); });

  expect(std::isnan(loss[0]), "bad row", ds, ds, classes, loss[0], 0);
  for (int64_t r = 1; r < rows; ++r) {
    const auto s = row(student, r, classes, f, tau[r]), s1 = row(student, r, classes, f, 1);
    Array<int64_t> place(classes, entries);  // of each class among the entries
    Numbers u(reduced), v(reduced, -HUGE_VAL), g(reduced), rest;
    double mass = 0, doubt = 0, apart = 0, ce = 0;
    for (int64_t k = 0; k < entries; ++k) {
      place[indices[r * entries + k]] = k, u[k] = s[indices[r * entries + k]];
      v[k] = values[r * entries + k] / tau[r] - (tail ? lse[r] : 0), mass += std::exp(v[k]);
    }
    for (int64_t c = 0; c < classes; ++c)
      if (place[c] == entries) rest.push_back(s[c]);
    if (!rest.empty()) u[entries] = logsumexp(rest);
    if (!rest.empty() && tail && mass < 1) v[entries] = std::log1p(-mass);
    const double lu = logsumexp(u), l1 = logsumexp(s1);
    if (soft_target) {
      double total = 0;
      for (int64_t k = 0; k < entries; ++k) total += values[r * entries + k];
      for (int64_t k = 0; k < reduced; ++k) {
        const double q = k < entries ? values[r * entries + k] : 0;
        apart -= q == 0 ? 0 : q * (u[k] - lu), g[k] = total * std::exp(u[k] - lu) - q;
      }
    } else {  // where the teacher has nothing left, next to it: the formulas' limit
      for (double& x : v) x = std::max(x, -700.0);
      apart = divergence(kind, 0.3, u, v, g, doubt);
    }
    const bool infinite = !soft_target && !tail && !rest.empty() && kind == kReverseKl;
    const double soft = alpha[0], hard = soft_target ? 0 : 1 - alpha[0];
    for (int64_t c = 0; c < classes; ++c) {
      const double share = 0.1 / classes + (c == target[r] ? 0.9 : 0), capped = f.cap > 0 ? s1[c] / f.cap : 0;
      ce += share * (l1 - s1[c]);
      const bool member = place[c] < entries;
      const double of_d = member ? g[place[c]] : g[entries] * std::exp(s[c] - u[entries]);
      const double slope = 1 - capped * capped;
      const double want = 0.5 * slope * (soft * tau[r] * of_d + hard * (std::exp(s1[c] - l1) - share));
      const double got = gradient.at(r, c);
      expect(infinite || std::fabs(got - want) <= 2 * kEps[ds] * std::fabs(want) + 6e-6 * loose + doubt * soft * tau[r],
             "top-k gradient", ds, ds, classes, got, want);
    }
    expect(gradient.at(r, classes) == 0, "padding", ds, ds, classes, gradient.at(r, classes), 0);
    const double want = soft * tau[r] * tau[r] * apart + hard * ce, slack = (1 + tau[r]) * (1 + tau[r]);
    expect(infinite ? loss[r] == R(HUGE_VAL) : std::fabs(loss[r] - want) <= 1e-5 * loose * (std::fabs(want) + slack),
           "top-k loss", ds, ds, classes, loss[r], want);
  }
}

void check_distribution(Dtype dtype, int64_t classes) {
  const uint64_t one[kDtypes] = {0x3f800000, 0x3ff0000000000000, 0x3c00, 0x3f80};
  Logits probs(dtype, 3, classes, 2);
  std::fill(probs.memory.begin(), probs.memory.end(), 0);
  const auto number = [&](int64_t r, int64_t c) { return &probs.memory[(r * probs.stride + c) * kBytes[dtype]]; };
  const auto check = [&] { return kernels.bad_distribution[dtype](probs.matrix(classes), 1e-3, 0, 3); };
  for (int64_t r = 0; r < 3; ++r) memcpy(number(r, r * (classes - 1) / 2), &one[dtype], kBytes[dtype]);
  expect(check() == -1, "distribution", dtype, dtype, classes, check(), -1);
  number(2, classes - 1)[kBytes[dtype] - 1] |= 0x80;  // the last number, -1
  expect(check() == 2, "negative", dtype, dtype, classes, check(), 2);
  memset(number(1, (classes - 1) / 2), 0, kBytes[dtype]);
  expect(check() == 1, "sum", dtype, dtype, classes, check(), 1);
}

}  // namespace

int main() {
  constexpr Dtype beside[3] = {f32, f16, bf16};
  for (int64_t classes : {1, 2, 7, 15, 16, 17, 33, 1023, 1024, 1025, 2064})
    for (int d = 0; d < kDtypes; ++d) {
      const Dtype ds = Dtype(d);
      check_distribution(ds, classes);
      for (int variant = 0; variant < 5; ++variant) {
        for (int kind = 0; kind < kDivergences; ++kind)
          ds == f64 ? check<double>(f64, f64, classes, variant, Divergence(kind))
                    : check<float>(ds, beside[(variant + kind) % 3], classes, variant, Divergence(kind));
        for (int kind : {kForwardKl, kReverseKl, kJsd, kTotalVariation, kSoftTarget})
          if (variant < 4)
            ds == f64 ? check_topk<double>(f64, classes, variant, Divergence(kind))
                      : check_topk<float>(ds, classes, variant, Divergence(kind));
      }
    }
  std::printf("%d failures\n", failures);
  return failures != 0;
}

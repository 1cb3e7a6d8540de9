#include "attention/backward_group.h"

#include <algorithm>

#include "operators/places.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

int64_t grad_floats(const BackwardProblem& p) { return p.panels * p.table.panel * p.width; }
int64_t columns_floats(const BackwardProblem& p) {
  return p.table.column_panel_floats(p.width, p.length);
}
int64_t source_columns_floats(const BackwardProblem& p) {
  return p.self ? 0 : p.table.column_panel_floats(p.source_width, p.source_length);
}
int64_t angle_floats(const BackwardProblem& p) { return p.panels * p.table.panel * p.rotary_dim; }
int64_t query_stride(const BackwardProblem& p, int64_t sample) {
  return (p.pairs_of(sample) + (p.self ? 2 * p.kv_of(sample) : 0)) * p.panel_floats();
}
int64_t key_stride(const BackwardProblem& p, int64_t sample) {
  return p.self ? query_stride(p, sample) : 2 * p.kv_of(sample) * p.panel_floats();
}

}  // namespace

int64_t BackwardGroup::floats(const BackwardProblem& p, int64_t sample) {
  return headkit::grad_floats(p) + 2 * headkit::columns_floats(p) +
         headkit::source_columns_floats(p) + 4 * headkit::angle_floats(p) +
         p.panels * headkit::query_stride(p, sample) +
         (p.self ? 0 : p.source_panels * headkit::key_stride(p, sample)) +
         2 * (p.pairs_of(sample) * p.length + p.kv_of(sample) * p.source_length) * p.row;
}

BackwardGroup::BackwardGroup(const BackwardProblem& problem, int64_t first, int64_t end)
    : problem_(problem),
      first_(first),
      count_(end - first),
      grad_floats_(headkit::grad_floats(problem)),
      columns_floats_(headkit::columns_floats(problem)),
      source_columns_floats_(headkit::source_columns_floats(problem)),
      angle_floats_(headkit::angle_floats(problem)) {
  const BackwardProblem& p = problem;
  query_rows_.fill(p.list, first_, count_);
  key_rows_.fill(p.kv, first_, count_);
  Places places;
  grad_panels_ = places.place(count_ * grad_floats_);
  x_columns_ = places.place(count_ * columns_floats_);
  grad_columns_ = places.place(count_ * columns_floats_);
  source_columns_ = p.self ? x_columns_ : places.place(count_ * source_columns_floats_);
  angles_ = places.place(count_ * 2 * angle_floats_);
  key_angles_ = places.place(count_ * 2 * angle_floats_);
  for (int64_t b = first_; b < end; ++b) {
    query_stride_.push_back(headkit::query_stride(p, b));
    key_stride_.push_back(headkit::key_stride(p, b));
    query_gradients_.push_back(places.place(p.panels * query_stride_.back()));
    key_gradients_.push_back(p.self ? query_gradients_.back() + p.pairs_of(b) * p.panel_floats()
                                    : places.place(p.source_panels * key_stride_.back()));
    for (int64_t kv = p.kv.row_offset[b]; kv < p.kv.row_offset[b + 1]; ++kv) tasks_.push_back(kv);
    if (p.kv_of(b) > 0) most_keys_ = std::max(most_keys_, p.pairs.keys[b].count);
  }
  for (const Matrix m : {kMatrixQ, kMatrixO}) {
    rows_[m] = places.place(query_rows_.pairs() * p.length * p.row);
  }
  for (const Matrix m : {kMatrixK, kMatrixV}) {
    rows_[m] = places.place(key_rows_.pairs() * p.source_length * p.row);
  }
  thread_local Arena arena;
  memory_ = arena.reserve(places.floats());

  // Longest first, so that short tasks fill the idle tail of the last threads.
  const auto cost = [&p](int64_t kv) {
    return static_cast<int64_t>(p.pairs_of_kv[kv].size()) *
           (p.width + 3 * p.pairs.keys[p.sample_of[kv]].count);
  };
  std::stable_sort(tasks_.begin(), tasks_.end(),
                   [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
}

}  // namespace headkit

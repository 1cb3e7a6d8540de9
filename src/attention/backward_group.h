#pragma once

#include <cstdint>
#include <vector>

#include "attention/backward_problem.h"
#include "attention/head_rows.h"

namespace headkit {

/// The weight matrices of attention.
enum Matrix : int { kMatrixQ, kMatrixK, kMatrixV, kMatrixO, kMatrices };

/// Samples whose backward runs together, and the workspace through which its stages talk: what is
/// packed of them, then what their pairs leave for the sums. A sample is named by its place in the
/// group. Layouts: kernels/params.h.
class BackwardGroup {
 public:
  /// Floats that one sample takes.
  static int64_t floats(const BackwardProblem& problem, int64_t sample);

  /// Samples [first, end). Its memory is the calling thread's, until the next group.
  BackwardGroup(const BackwardProblem& problem, int64_t first, int64_t end);

  int64_t first() const { return first_; }
  int64_t count() const { return count_; }
  /// Entries of the problem's kv that lie in the group: costly ones first.
  const std::vector<int64_t>& tasks() const { return tasks_; }
  /// Most keys of a sample.
  int64_t most_keys() const { return most_keys_; }

  /// Token panels of the gradient of the output.
  float* grad_panels(int64_t place) const { return at(grad_panels_, place, grad_floats_); }
  /// Column panels of x, of the gradient of the output and of the source of keys and values, from
  /// one sample to the next `columns_floats` and `source_columns_floats`.
  float* x_columns(int64_t place) const { return at(x_columns_, place, columns_floats_); }
  float* grad_columns(int64_t place) const { return at(grad_columns_, place, columns_floats_); }
  float* source_columns(int64_t place) const {
    return at(source_columns_, place, source_columns_floats());
  }
  int64_t columns_floats() const { return columns_floats_; }
  int64_t source_columns_floats() const {
    return problem_.self ? columns_floats_ : source_columns_floats_;
  }
  /// Token panels of the cosines, `angle_floats` further those of the sines: of the queries and of
  /// the keys that are there.
  float* angles(int64_t place) const { return at(angles_, place, 2 * angle_floats_); }
  float* key_angles(int64_t place) const { return at(key_angles_, place, 2 * angle_floats_); }
  int64_t angle_floats() const { return angle_floats_; }

  /// Token panels of the gradients of the projected queries of a sample, pair after pair, in
  /// self-attention those of its keys and values behind them; `query_stride` from one panel of
  /// tokens to the next.
  float* query_gradients(int64_t place) const { return memory_ + query_gradients_[place]; }
  int64_t query_stride(int64_t place) const { return query_stride_[place]; }
  /// The same of keys, then of values.
  float* key_gradients(int64_t place) const { return memory_ + key_gradients_[place]; }
  int64_t key_stride(int64_t place) const { return key_stride_[place]; }
  /// Rows that a weight's gradient is made of, head by head as `query_rows` and `key_rows` place
  /// them: the gradients of the projected queries, keys and values; for the output the contexts.
  float* rows(Matrix matrix) const { return memory_ + rows_[matrix]; }
  const HeadRows& query_rows() const { return query_rows_; }
  const HeadRows& key_rows() const { return key_rows_; }

 private:
  float* at(int64_t part, int64_t place, int64_t floats) const {
    return memory_ + part + place * floats;
  }

  const BackwardProblem& problem_;
  const int64_t first_, count_;
  const int64_t grad_floats_, columns_floats_, source_columns_floats_, angle_floats_;
  std::vector<int64_t> tasks_;
  int64_t most_keys_ = 0;
  HeadRows query_rows_, key_rows_;
  float* memory_ = nullptr;
  int64_t grad_panels_, x_columns_, grad_columns_, source_columns_, angles_, key_angles_;
  int64_t rows_[kMatrices];
  std::vector<int64_t> query_gradients_, key_gradients_, query_stride_, key_stride_;
};

}  // namespace headkit

#pragma once

#include <cstdint>

#include "headkit/explain/role_accumulator.h"

namespace headkit {

/// One row of a head after the other, by plain pointers.
class RowCursor {
 public:
  RowCursor(const RoleRows& rows, int64_t head)
      : queries_(rows.queries()),
        keys_(rows.keys()),
        first_row_(head * queries_),
        mask_(rows.attention.key_allowed.size(0) > 1 ? head * queries_ : 0),
        probabilities_(rows.attention.probabilities.const_data_ptr<float>()),
        allowed_(rows.attention.key_allowed.const_data_ptr<bool>()),
        valid_(rows.attention.query_valid.const_data_ptr<bool>()),
        counts_(rows.allowed_keys.const_data_ptr<int64_t>()),
        largest_(rows.largest.const_data_ptr<float>()),
        ties_(rows.ties.const_data_ptr<float>()),
        squares_(rows.squares.const_data_ptr<float>()),
        special_(rows.special_mass.const_data_ptr<float>()),
        entropy_(rows.entropy.const_data_ptr<float>()),
        content_(rows.content_keys.const_data_ptr<int64_t>()) {}

  void move_to(int64_t query) {
    const int64_t row = first_row_ + query;
    weights = probabilities_ + row * keys_;
    allowed = allowed_ + (mask_ + query) * keys_;
    keys_allowed = static_cast<double>(counts_[mask_ + query]);
    valid = valid_[query] && counts_[mask_ + query] > 0;
    largest = largest_[row];
    ties = ties_[row];
    squares = squares_[row];
    special_mass = special_[row];
    entropy = entropy_[row];
    content_keys = static_cast<double>(content_[mask_ + query]);
  }

  const float* weights = nullptr;  ///< [S]
  const bool* allowed = nullptr;   ///< [S]
  double keys_allowed = 0, content_keys = 0;
  bool valid = false;  ///< a token that may see a key
  float largest = 0, ties = 0, squares = 0, special_mass = 0, entropy = 0;

 private:
  int64_t queries_, keys_, first_row_, mask_;
  const float* probabilities_;
  const bool* allowed_;
  const bool* valid_;
  const int64_t* counts_;
  const float* largest_;
  const float* ties_;
  const float* squares_;
  const float* special_;
  const float* entropy_;
  const int64_t* content_;
};

}  // namespace headkit

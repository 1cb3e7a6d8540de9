#include "models/replaced_weights.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"

namespace headkit {

void check_kept(const char* operation, const char* units, const std::vector<int64_t>& kept,
                int64_t count) {
  int64_t previous = -1;
  for (const int64_t one : kept) {
    HEADKIT_CHECK(one > previous && one < count, operation,
                  c10::str("ascending ", units, " from 0 to ", count - 1), one, " after ",
                  previous);
    previous = one;
  }
}

void check_replacement(const char* operation, const char* name, const at::Tensor& given,
                       const at::Tensor& old, at::IntArrayRef shape) {
  HEADKIT_CHECK(given.defined() == old.defined(), operation, c10::str(name, " as in the model"),
                given.defined() ? "one" : "none");
  if (!given.defined()) return;
  HEADKIT_CHECK(given.sizes() == shape && given.scalar_type() == old.scalar_type(), operation,
                c10::str(name, " of shape ", shape, " and dtype ", old.scalar_type()), "shape ",
                given.sizes(), " and dtype ", given.scalar_type());
}

at::Tensor in_place_of(const at::Tensor& given, const at::Tensor& old) {
  if (!given.defined()) return {};
  return given.detach().to(old.device()).set_requires_grad(old.requires_grad());
}

}  // namespace headkit

#include "kernels/level.h"

namespace headkit::kernels {
namespace {

void add_exponential(const Level& level, const std::string& suffix, int64_t count) {
  const KernelTable* table = &level.table;
  add(level, "exponential" + suffix + size("n", count), 0.0, 8.0 * count, [=] {
    return [=, x = std::make_shared<Floats>(count), y = std::make_shared<Floats>(count)] {
      table->exponential(x->data(), y->data(), count);
    };
  });
}

void add_activate(const Level& level, const char* name, Activation kind, int64_t count) {
  const KernelTable* table = &level.table;
  add(level, name + size("n", count), 0.0, 12.0 * count, [=] {
    return [=, x = std::make_shared<Floats>(count), value = std::make_shared<Floats>(count),
            slope = std::make_shared<Floats>(count)] {
      table->activate(kind, x->data(), value->data(), slope->data(), count);
    };
  });
}

}  // namespace

void add_activation(const Level& level) {
  add_exponential(level, "/smoke", 5);
  add_exponential(level, "", 4096);
  add_activate(level, "activate/gelu", Activation::kGelu, 4096);
  add_activate(level, "activate/gelu_tanh", Activation::kGeluTanh, 4096);
  add_activate(level, "activate/silu", Activation::kSilu, 4096);
}

}  // namespace headkit::kernels

#include "headkit/core/head_layout.h"

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {

void HeadLayout::check(const char* operation) const {
  HEADKIT_CHECK(layers > 0 && heads > 0 && head_dim > 0 && model_dim > 0 && feed_forward >= 0,
                operation, "a layout of positive sizes", to_json());
}

std::string HeadLayout::to_json() const {
  return Json{{"layers", layers},
              {"heads", heads},
              {"head_dim", head_dim},
              {"model_dim", model_dim},
              {"feed_forward", feed_forward}}
      .dump();
}

HeadLayout HeadLayout::from_json(const std::string& text) {
  constexpr auto kOperation = "head_layout";
  const Json json = parse_json(kOperation, text);
  HeadLayout layout;
  layout.layers = integer_member(kOperation, json, "layers");
  layout.heads = integer_member(kOperation, json, "heads");
  layout.head_dim = integer_member(kOperation, json, "head_dim");
  layout.model_dim = integer_member(kOperation, json, "model_dim");
  layout.feed_forward = integer_member(kOperation, json, "feed_forward");
  layout.check(kOperation);
  return layout;
}

}  // namespace headkit

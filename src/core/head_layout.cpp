#include "headkit/core/head_layout.h"

#include <algorithm>
#include <set>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {

void HeadLayout::check(const char* operation) const {
  HEADKIT_CHECK(layers > 0 && heads > 0 && head_dim > 0 && model_dim > 0 && feed_forward >= 0,
                operation, "a layout of positive sizes", to_json());
  HEADKIT_CHECK(key_value_heads() > 0 && heads % key_value_heads() == 0, operation,
                "kv_heads that divide the heads", to_json());
}

bool HeadLayout::operator==(const HeadLayout& other) const {
  return layers == other.layers && heads == other.heads && head_dim == other.head_dim &&
         model_dim == other.model_dim && feed_forward == other.feed_forward &&
         key_value_heads() == other.key_value_heads();
}

std::vector<int64_t> HeadLayout::kv_heads_of(const std::vector<int64_t>& kept) const {
  std::set<int64_t> used;
  for (const int64_t head : kept) used.insert(kv_head(head));
  return {used.begin(), used.end()};
}

std::vector<int64_t> HeadLayout::kv_places_of(const std::vector<int64_t>& kept) const {
  const std::vector<int64_t> used = kv_heads_of(kept);
  std::vector<int64_t> places;
  for (const int64_t head : kept) {
    places.push_back(std::lower_bound(used.begin(), used.end(), kv_head(head)) - used.begin());
  }
  return places;
}

std::string HeadLayout::to_json() const {
  Json json{{"layers", layers},
            {"heads", heads},
            {"head_dim", head_dim},
            {"model_dim", model_dim},
            {"feed_forward", feed_forward}};
  if (key_value_heads() != heads) json["kv_heads"] = kv_heads;
  return json.dump();
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
  if (json.contains("kv_heads")) {
    layout.kv_heads = integer_member(kOperation, json, "kv_heads");
    HEADKIT_CHECK(layout.kv_heads > 0, kOperation, "kv_heads of at least 1", layout.kv_heads);
  }
  layout.check(kOperation);
  return layout;
}

}  // namespace headkit

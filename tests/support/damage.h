#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace headkit::testing {

/// Damages the content of files, the same way for the same seed.
class Damage {
 public:
  explicit Damage(uint32_t seed) : generator_(seed) {}

  /// Up to four bytes or runs of bytes changed, removed, or repeated elsewhere.
  std::string with_other_bytes(std::string text) {
    for (int64_t edits = 1 + below(4); edits > 0 && !text.empty(); --edits) {
      const auto place = static_cast<size_t>(below(static_cast<int64_t>(text.size())));
      switch (below(3)) {
        case 0:
          text[place] = static_cast<char>(below(256));
          break;
        case 1:
          text.erase(place, static_cast<size_t>(1 + below(20)));
          break;
        default:
          text.insert(place,
                      text.substr(static_cast<size_t>(below(static_cast<int64_t>(place) + 1)),
                                  static_cast<size_t>(below(30))));
      }
    }
    return text;
  }

  /// Up to three values of a JSON text, at any depth, removed or replaced by what does not belong
  /// there: other kinds, other members' names, numbers at the ends of their types, `more`.
  std::string with_other_values(const std::string& text,
                                const std::vector<nlohmann::json>& more = {}) {
    nlohmann::json whole = nlohmann::json::parse(text);
    for (int64_t edits = 1 + below(3); edits > 0; --edits) damage(whole, more);
    return whole.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  bool chance(double probability) { return std::bernoulli_distribution(probability)(generator_); }
  /// 0 .. count-1
  int64_t below(int64_t count) {
    return std::uniform_int_distribution<int64_t>(0, count - 1)(generator_);
  }

 private:
  void damage(nlohmann::json& value, const std::vector<nlohmann::json>& more) {
    nlohmann::json* at = &value;
    while (at->is_structured() && !at->empty() && chance(0.8)) {
      const auto child = std::next(at->begin(), below(static_cast<int64_t>(at->size())));
      if (chance(0.15)) {
        at->erase(child);
        return;
      }
      at = &*child;
    }
    *at = other(more);
  }

  nlohmann::json other(const std::vector<nlohmann::json>& more) {
    using nlohmann::json;
    static const std::vector<json> kValues = {nullptr,
                                              true,
                                              "",
                                              "none",
                                              json::array(),
                                              json::array({2, 3}),
                                              json::array({json::array({0.5}), json::array()}),
                                              json::object(),
                                              -0.0,
                                              0.5,
                                              1e300,
                                              INT64_MAX,
                                              INT64_MIN,
                                              UINT64_MAX,
                                              int64_t{1} << 31,
                                              int64_t{1} << 22,
                                              4096};
    if (chance(0.3)) return below(30) - 4;
    const int64_t place = below(static_cast<int64_t>(kValues.size() + more.size()));
    const auto known = static_cast<int64_t>(kValues.size());
    return place < known ? kValues[place] : more[place - known];
  }

  std::mt19937 generator_;
};

}  // namespace headkit::testing

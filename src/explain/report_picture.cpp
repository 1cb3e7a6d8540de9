#include "headkit/explain/report_picture.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "explain/record_view.h"

namespace headkit {
namespace {

constexpr const char* kOperation = "report_picture";
constexpr int64_t kMaxWidth = 620;
constexpr int64_t kLeft = 34;
constexpr int64_t kTop = 26;
constexpr int64_t kBottom = 40;

using Colour = std::array<double, 3>;
// PuOr of ColorBrewer, symmetric about 0.
constexpr std::array<Colour, 5> kStops{
    {{84, 39, 136}, {178, 171, 210}, {247, 247, 247}, {253, 184, 99}, {179, 88, 6}}};

std::string colour(double place) {
  const double at = std::clamp(place, 0.0, 1.0) * (kStops.size() - 1);
  const size_t low = std::min(kStops.size() - 2, static_cast<size_t>(at));
  char text[8];
  std::array<int, 3> mixed;
  for (size_t i = 0; i < 3; ++i) {
    mixed[i] = static_cast<int>(
        std::lround(kStops[low][i] + (at - low) * (kStops[low + 1][i] - kStops[low][i])));
  }
  std::snprintf(text, sizeof text, "#%02x%02x%02x", mixed[0], mixed[1], mixed[2]);
  return text;
}

std::string attribute(const char* name, int64_t value) {
  return std::string(" ") + name + "=\"" + std::to_string(value) + "\"";
}

std::string text_element(int64_t x, int64_t y, const char* anchor, const std::string& text) {
  return "<text" + attribute("x", x) + attribute("y", y) + " text-anchor=\"" + anchor + "\">" +
         text + "</text>";
}

std::string cell(const Json& head, int64_t x, int64_t y, int64_t size, double largest) {
  const std::string state = head.at("state").get<std::string>();
  const std::string box = "<rect" + attribute("x", x) + attribute("y", y) +
                          attribute("width", size) + attribute("height", size) + " rx=\"3\"";
  if (state == "pruned" || state == "collapsed") {
    return box + " fill=\"none\" stroke=\"#999\" stroke-dasharray=\"2 2\"/>" +
           text_element(x + size / 2, y + size / 2 + 4, "middle", "\u00d7");
  }
  const auto effect = shown_effect(head);
  const bool on = head.at("gate").get<double>() != 0;
  const std::string fill =
      effect ? colour((effect->value / largest + 1) / 2) : std::string(on ? "#009e73" : "#f7f7f7");
  std::string drawn = box + " fill=\"" + fill + "\" stroke=\"#555\" stroke-width=\"" +
                      (state == "always_on" ? "3" : "1") + "\"/>";
  if (!on) drawn += box + " fill=\"url(#off)\"/>";
  return drawn;
}

}  // namespace

std::string report_picture(const std::string& text) {
  const Json record = parse_record(kOperation, text);
  const int64_t layers = record.at("model").at("layers").get<int64_t>();
  const int64_t heads = record.at("model").at("heads").get<int64_t>();
  const int64_t step = std::clamp<int64_t>((kMaxWidth - kLeft) / heads, 8, 34);
  const int64_t width = std::max<int64_t>(kLeft + heads * step, 420);
  const int64_t height = kTop + layers * step + kBottom;
  double largest = 0;
  const char* name = nullptr;
  for (const Json& head : record.at("heads")) {
    if (const auto effect = shown_effect(head)) {
      largest = std::max(largest, std::abs(effect->value));
      name = effect->name;
    }
  }
  const auto on =
      std::count_if(record.at("heads").begin(), record.at("heads").end(),
                    [](const Json& head) { return head.at("gate").get<double>() != 0; });
  const std::string title =
      std::to_string(on) + " of " + std::to_string(layers * heads) + " heads on";
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 " +
                    std::to_string(width) + " " + std::to_string(height) + "\"" +
                    attribute("width", width) + attribute("height", height) +
                    " font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\"><title>" + title +
                    "</title><defs><pattern id=\"off\" width=\"5\" height=\"5\" "
                    "patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path "
                    "d=\"M0 0V5\" stroke=\"#000\" stroke-width=\"1.6\" opacity=\".6\"/></pattern>"
                    "</defs><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>" +
                    text_element(4, 16, "start", title);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t y = kTop + (layers - 1 - layer) * step;
    if (step >= 12 || layer % 4 == 0) {
      svg += text_element(kLeft - 6, y + step / 2 + 4, "end", "L" + std::to_string(layer));
    }
    for (int64_t head = 0; head < heads; ++head) {
      svg += cell(record.at("heads")[static_cast<size_t>(layer * heads + head)],
                  kLeft + head * step, y, step - 2, largest > 0 ? largest : 1);
    }
  }
  for (int64_t head = 0; head < heads; ++head) {
    if (step < 20 && head % 4 != 0) continue;
    svg += text_element(kLeft + head * step + step / 2, kTop + layers * step + 12, "middle",
                        "H" + std::to_string(head));
  }
  const std::string legend = name == nullptr
                                 ? std::string("filled: on; hatched: off; layer 0 at the bottom")
                                 : std::string(name) + ": orange +, purple \u2212, up to " +
                                       shown(largest) + "; hatched: off; layer 0 at the bottom";
  svg += text_element(4, height - 8, "start", legend) + "</svg>";
  return svg;
}

}  // namespace headkit

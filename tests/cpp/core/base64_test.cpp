#include "core/base64.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace headkit {
namespace {

std::string encoded(const std::string& text) {
  return base64_encode(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

TEST(Base64, GivesTheVectorsOfRfc4648) {
  EXPECT_EQ(encoded(""), "");
  EXPECT_EQ(encoded("f"), "Zg==");
  EXPECT_EQ(encoded("fo"), "Zm8=");
  EXPECT_EQ(encoded("foo"), "Zm9v");
  EXPECT_EQ(encoded("foobar"), "Zm9vYmFy");
}

TEST(Base64, ComesBack) {
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(base64_decode("test", base64_encode(bytes.data(), bytes.size())), bytes);
    bytes.push_back(static_cast<uint8_t>(i));
  }
}

TEST(Base64, RefusesOtherText) {
  EXPECT_THROW(base64_decode("test", "Zm9"), std::invalid_argument);
  EXPECT_THROW(base64_decode("test", "Zm9\xff"), std::invalid_argument);
}

}  // namespace
}  // namespace headkit

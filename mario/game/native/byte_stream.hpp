// Writes and reads little-endian fields; the reader checks that it stays within its bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "types.hpp"

namespace nes {

class ByteWriter {
 public:
  template <typename T>
  void field(const T& value) {
    static_assert(std::is_integral_v<T>);
    if constexpr (sizeof(T) == 1) {
      bytes_.push_back(static_cast<Byte>(value));
    } else {
      const auto bits = static_cast<std::make_unsigned_t<T>>(value);
      for (std::size_t i = 0; i < sizeof(T); ++i)
        bytes_.push_back(static_cast<Byte>(bits >> (8 * i)));
    }
  }
  template <std::size_t N>
  void field(const std::array<Byte, N>& block) {
    bytes_.insert(bytes_.end(), block.begin(), block.end());
  }
  void block(const Byte* data, std::size_t size) { bytes_.insert(bytes_.end(), data, data + size); }
  std::vector<Byte> take() { return std::move(bytes_); }
  std::vector<Byte>& bytes() { return bytes_; }

 private:
  std::vector<Byte> bytes_;
};

class ByteReader {
 public:
  ByteReader(const Byte* data, std::size_t size) : data_(data), left_(size) {}

  template <typename T>
  void field(T& value) {
    static_assert(std::is_integral_v<T>);
    const Byte* bytes = block(sizeof(T));
    if constexpr (std::is_same_v<T, bool>) {
      if (bytes[0] > 1) throw SaveStateError("a flag that is neither 0 nor 1");
      value = bytes[0] != 0;
    } else if constexpr (sizeof(T) == 1) {
      value = static_cast<T>(bytes[0]);
    } else {
      std::make_unsigned_t<T> bits = 0;
      for (std::size_t i = 0; i < sizeof(T); ++i)
        bits |= static_cast<std::make_unsigned_t<T>>(
            static_cast<std::make_unsigned_t<T>>(bytes[i]) << (8 * i));
      value = static_cast<T>(bits);
    }
  }
  template <std::size_t N>
  void field(std::array<Byte, N>& out) {
    std::memcpy(out.data(), block(N), N);
  }
  const Byte* block(std::size_t size) {
    if (size > left_)
      throw SaveStateError("cut short: " + std::to_string(size - left_) + " bytes are missing");
    const Byte* begin = data_;
    data_ += size;
    left_ -= size;
    return begin;
  }
  std::size_t left() const { return left_; }

 private:
  const Byte* data_;
  std::size_t left_;
};

}  // namespace nes

// One frame of the observation: the grey screen resized to 84 × 84 by exact area average.
// The definition is mario/game/smb/observations/pixels.py; this gives the same bytes.
#pragma once

#include <cstddef>

#include "types.hpp"

namespace nes {

inline constexpr int kFrameSize = 84;                            // px, both ways
inline constexpr std::size_t kFrameBytes = kFrameSize * kFrameSize;
inline constexpr std::size_t kStack = 4;                         // frames, newest last
inline constexpr std::size_t kObservationBytes = kStack * kFrameBytes;

// `grey`: 240 × 256 bytes; `frame`: 84 × 84 bytes.
void area_resize(const Byte* grey, Byte* frame);

// Pixelwise maximum of two screens, into the first.
void max_pool(Byte* screen, const Byte* other);

}  // namespace nes

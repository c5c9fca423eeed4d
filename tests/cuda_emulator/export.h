// What Python may call of a driver: numbers are int64_t, all else a pointer.
#pragma once
#define EXPORT extern "C" __attribute__((visibility("default")))

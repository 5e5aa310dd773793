// SPDX-License-Identifier: Apache-2.0
// Symbol visibility: everything is hidden but what carries MIXGEMM_API.
#pragma once

#if defined(MIXGEMM_STATIC)
#define MIXGEMM_API
#elif defined(__GNUC__)
#define MIXGEMM_API __attribute__((visibility("default")))
#else
#define MIXGEMM_API
#endif

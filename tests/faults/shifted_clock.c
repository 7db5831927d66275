/* The time of day as a machine would have it whose clock is set back an hour, and a day ahead later.

   Loaded before the C library. CLOCK_BEGAN is a time of the monotonic clock, in seconds, which all processes share. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);

static long shift(void) {
  static double began = 0;
  struct timespec now;
  if (began == 0) {
    const char *text = getenv("CLOCK_BEGAN");
    began = text ? atof(text) : -1;
  }
  if (began < 0) return 0;
  real(CLOCK_MONOTONIC, &now);
  double since = now.tv_sec - began;
  return since < 20 ? 0 : since < 28 ? -3600 : 86400;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int answer = real(clock, at);
  if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
  return answer;
}

int gettimeofday(struct timeval *at, void *zone) {
  (void)zone;
  struct timespec now;
  int answer = clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return answer;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}

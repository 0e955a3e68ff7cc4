"""The official KITTI protocol in plain loops: slow, and easy to hold against its text."""

import numpy as np


def overlap(a, b, area=None):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a + area_b - width * height if area is None else area_a)


def flag_truth(frame, i, name, limits):
    min_height, max_occlusion, max_truncation = limits
    kind, box = frame.types[i].lower(), frame.boxes[i]
    if kind == name:
        clear = frame.occluded[i] <= max_occlusion and frame.truncated[i] <= max_truncation
        return 0 if clear and box[3] - box[1] > min_height else 1
    return 1 if (name, kind) in {("car", "van"), ("pedestrian", "person_sitting")} else -1


def flag_detection(frame, j, name, limits):
    if int(frame.boxes[j][3] - frame.boxes[j][1]) < limits[0]:
        return 1
    return 0 if frame.types[j].lower() == name else -1


def match_frame(truth, result, name, limits, threshold):
    """One frame: (scores of true positives, tp, fp, fn). Without a threshold it is pass 1, whose fp means nothing."""
    min_iou = 0.7 if name == "car" else 0.5
    flags = [flag_detection(result, j, name, limits) for j in range(len(result.types))]
    looked_at = [j for j, f in enumerate(flags) if f >= 0 and (threshold is None or result.scores[j] >= threshold)]
    assigned, hits, fn = set(), [], 0
    for i in range(len(truth.types)):
        flag = flag_truth(truth, i, name, limits)
        if flag == -1:
            continue
        ious = {j: overlap(result.boxes[j], truth.boxes[i]) for j in looked_at if j not in assigned}
        candidates = [j for j in ious if ious[j] > min_iou]
        if not candidates:
            fn += flag == 0
            continue
        if threshold is None:
            best = max(candidates, key=lambda j: result.scores[j])  # max returns the first of equals
        elif any(flags[j] == 0 for j in candidates):
            best = max((j for j in candidates if flags[j] == 0), key=ious.__getitem__)
        else:
            best = candidates[0]
        assigned.add(best)
        if flag == 0 and flags[best] == 0:
            hits.append(result.scores[best])
    false = {j for j in looked_at if flags[j] == 0 and j not in assigned}
    dontcare = [box for kind, box in zip(truth.types, truth.boxes, strict=True) if kind.lower() == "dontcare"]
    false = {j for j in false if not any(overlap(result.boxes[j], box, "first") > min_iou for box in dontcare)}
    return hits, len(hits), len(false), fn


def oracle(truths, results, name, limits):
    """n_gt, thresholds, tp, fp, fn, precision."""
    name, frames = name.lower(), list(zip(truths, results, strict=True))
    n_gt = sum(flag_truth(t, i, name, limits) == 0 for t in truths for i in range(len(t.types)))
    scores = sorted((s for t, r in frames for s in match_frame(t, r, name, limits, None)[0]), reverse=True)
    thresholds, recall = [], 0.0
    for i, score in enumerate(scores):
        last = i == len(scores) - 1
        left, right = (i + 1) / n_gt, (i + 1 if last else i + 2) / n_gt
        if right - recall < recall - left and not last:
            continue
        thresholds.append(score)
        recall += 1 / 40
    counts = []
    for threshold in thresholds:
        per_frame = [match_frame(t, r, name, limits, threshold)[1:] for t, r in frames]
        counts.append([sum(column) for column in zip(*per_frame, strict=True)])
    precision = [tp / (tp + fp) if tp + fp else 0.0 for tp, fp, _ in counts] + [0.0] * (41 - len(counts))
    return n_gt, thresholds, *np.array(counts).reshape(-1, 3).T, [max(precision[k:]) for k in range(41)]
